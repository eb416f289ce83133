"""Timings of fera beside what it could be instead: `python -m benchmarks`, or `make bench`."""
