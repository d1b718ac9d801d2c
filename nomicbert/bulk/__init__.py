"""Files of texts -> files of vectors."""
