"""Hook specifications for every operation of a driver: one module per topic, bodies are documentation."""
