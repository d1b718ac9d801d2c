"""Hidden states -> vectors: pooling, the modules after it, quantisation and similarity."""
