"""The checks of a family as tests: as ``hvcore.conformance.suite``, with ``--hv-family KIND:NAME``."""
