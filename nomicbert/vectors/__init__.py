"""Hidden states -> vectors: pooling, the modules behind it, quantisation and similarity."""
