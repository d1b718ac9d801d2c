"""Other libraries' interfaces around an Embedder: one file each, imported by nobody here."""
