"""Measurements behind the figures in the README and in docs/: ``python -m benchmarks.NAME``."""
