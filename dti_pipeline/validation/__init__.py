"""Data validation: Great Expectations suites over raw and canonical rows.

`report` and `requirement`, which others use, import neither great_expectations nor duckdb.
"""
