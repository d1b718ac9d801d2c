"""A stream of texts -> a stream of vectors: what a call asks for, windows, batches, progress."""
