"""Token ids -> hidden states: the encoder, its layers, and the heads on top of it."""
