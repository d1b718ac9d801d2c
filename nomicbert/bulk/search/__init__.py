"""Nearest vectors of a folder: a raw copy that is mapped into memory, and scans over it."""
