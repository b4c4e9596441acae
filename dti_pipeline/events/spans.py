"""The interactions in spans of rows that part no user's history, to be read by themselves, in any process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: Rows of a span, about, where a stage makes the same whatever it is.
ROWS = 1 << 20
#: Rows of a Parquet file in memory at a time.
BATCH = 1 << 18


class Span(NamedTuple):
    """Rows ``[first, stop)`` of the log."""

    first: int
    stop: int


def spans(path: Path, rows: int) -> list[Span]:
    """The whole log in spans of about ``rows`` rows, one at least. Cost: of each span one row group's positions."""
    found, first = [], 0
    with pq.ParquetFile(path) as file:
        while first < file.metadata.num_rows:
            stop = _next_user(file, first + rows)
            found.append(Span(first, stop))
            first = stop
    return found


def batches(
    path: Path, span: Span, columns: Sequence[str], coded: Sequence[str] = ()
) -> Iterator[tuple[slice, pa.RecordBatch]]:
    """A span's rows, some at a time, each time with their places in it; columns ``coded`` come as dictionaries."""
    with pq.ParquetFile(path, read_dictionary=list(coded)) as file:
        groups = _groups(file)
        wanted = [i for i in range(len(groups) - 1) if groups[i] < span.stop and groups[i + 1] > span.first]
        at = int(groups[wanted[0]]) if wanted else span.first
        for batch in file.iter_batches(BATCH, row_groups=wanted, columns=list(columns)):
            begin, end = max(at, span.first), min(at + len(batch), span.stop)
            if begin < end:
                yield slice(begin - span.first, end - span.first), batch.slice(begin - at, end - begin)
            at += len(batch)


def _groups(file: pq.ParquetFile) -> np.ndarray:
    """First row of each row group, and the end."""
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    return np.cumsum([0, *sizes])


def _next_user(file: pq.ParquetFile, row: int) -> int:
    """The first row from ``row`` on that opens a history, or the end of the log."""
    groups = _groups(file)
    for group in range(int(np.searchsorted(groups, row, side="right")) - 1, len(groups) - 1):
        position = file.read_row_group(group, columns=["position"])["position"].to_numpy()
        opens = np.flatnonzero(position[max(0, row - groups[group]) :] == 0)
        if len(opens):
            return max(row, int(groups[group])) + int(opens[0])
    return int(groups[-1])
