"""Columns of text as indices of their distinct values, some rows of the log at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

#: Distinct values of some columns, one of each, as they first occur.
Values = list[tuple[str, ...]]


def distinct(columns: list[pa.DictionaryArray], index: dict[tuple[str, ...], int]) -> np.ndarray:
    """Index of each row's values, one of each column; values that were not seen before are added to ``index``."""
    codes = columns[0].indices.to_numpy().astype(np.int64)
    for column in columns[1:] or columns:  # one alone is met with itself
        codes = codes * len(column.dictionary) + column.indices.to_numpy()
        _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    values = zip(*(column.take(pa.array(first)).to_pylist() for column in columns), strict=True)
    found = [index.setdefault(one, len(index)) for one in values]
    return np.array(found, np.int32)[codes]
