"""Benchmarks: one script a question, run as ``python -m benchmarks.NAME``; docs/benchmark.md has their tables."""

import dti_pipeline  # noqa: F401  # before the scripts import torch: it says how threads wait
