"""Benchmarks: one script a question, run as ``python -m benchmarks.NAME``; docs/benchmark.md has their tables."""
