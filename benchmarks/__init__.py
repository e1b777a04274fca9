"""Measurements behind the README's numbers. Run one with `python -m benchmarks.<name>`."""
