"""Security models: one file per plugin."""
