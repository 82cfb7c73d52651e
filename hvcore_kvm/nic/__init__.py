"""NIC modes: one file per plugin."""
