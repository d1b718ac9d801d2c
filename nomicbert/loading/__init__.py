"""A folder or repository of the hub -> configuration, settings and parameters."""
