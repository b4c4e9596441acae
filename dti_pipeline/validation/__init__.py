"""2. Is this batch fit to train on? Great Expectations suites over raw and canonical rows; plain outcomes out.

What runs the suites imports great_expectations and duckdb; `outcome` and `gate`, which others use, import neither.
"""
