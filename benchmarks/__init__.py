"""Benchmarks against peers from PyPI and the machine's own limits: ``make bench`` or ``python -m benchmarks``."""
