"""Speed against peers from PyPI and against the machine's own limits: ``make bench`` or ``python -m benchmarks``."""
