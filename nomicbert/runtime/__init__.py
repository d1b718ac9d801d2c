"""What makes a stream of texts fast: batches by tokens."""
