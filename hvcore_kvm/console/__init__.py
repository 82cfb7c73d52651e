"""Console types: one file per plugin."""
