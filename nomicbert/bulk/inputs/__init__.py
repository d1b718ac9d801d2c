"""Inputs -> rows: files, folders, globs and URLs of texts in any of the known formats."""
