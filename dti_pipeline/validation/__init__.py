"""Checks of a batch before it is trained on: Great Expectations suites over raw and canonical rows."""
