"""The extensions hvcore ships; each wraps `hv_operation`, and runs only when the host application names it."""
