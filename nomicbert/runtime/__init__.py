"""A stream of texts -> a stream of vectors: request, windows, batches, progress, processes."""
