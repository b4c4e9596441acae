"""Data validation: Great Expectations suites over raw and canonical rows."""
