"""Adapters of Embedder to other libraries: one file each, never imported by the package itself."""
