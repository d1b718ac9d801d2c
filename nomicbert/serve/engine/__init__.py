"""Jobs of token ids -> rows: the queue, the batches, and the threads that compute them."""
