"""The checks as tests: ``pytest -p hvcore.conformance.plugin --pyargs hvcore.conformance.suite --hv-driver NAME``."""
