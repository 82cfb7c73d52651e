"""Backups of the disks of a running instance: what there is to copy, the copying, and what a killed one leaves."""
