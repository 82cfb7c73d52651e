"""Saving an instance to a file and restoring it: the file, both ways, and what a killed host application leaves."""
