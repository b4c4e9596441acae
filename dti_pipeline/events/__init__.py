"""Raw log to canonical interactions, in DuckDB; also the synthetic log, and fetching of public ones."""
