"""Snapshots: taking them, going back to them, giving them up, and what a killed host application leaves."""
