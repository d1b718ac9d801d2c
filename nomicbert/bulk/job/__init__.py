"""A folder of Parquet parts that survives crashes: manifest, parts, resume, check."""
