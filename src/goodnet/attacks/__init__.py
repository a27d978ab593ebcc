"""Planting backdoors, for the demo, the tests and the benchmark."""
