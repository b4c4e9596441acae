"""The canonical interactions as arrays, as far as evaluation needs them: user, item, label, what is known when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dti_pipeline.errors import InputError
from dti_pipeline.events import published
from dti_pipeline.packing.settings import RATES
from dti_pipeline.paths import Paths

Array = NDArray[Any]

COLUMNS = ["user_id", "item_id", "timestamp", "label", "split", "position", "request", "known"]


@dataclass(frozen=True)
class Interactions:
    """All R rows of the log, ordered by user and request; every array is (R,) and indexed by row.

    Of a log with loads each has its own histories, one load behind the other.
    """

    user: Array  # codes from 0, in order of first appearance
    item: Array  # likewise
    label: Array  # 0 or 1
    position: Array  # 0 at a user's first row
    request: Array  # position of the first row of its request, whose rows know nothing of each other
    known: Array  # so many of the user's first rows have a label that is known to it; <= request
    train: Array  # True at training targets
    table: pa.Table  # the same rows with their own ids, timestamps and, where words tell them, rates

    def history(self) -> Array:
        """(R,) the first row of each row's user."""
        return np.arange(len(self.position)) - self.position

    def popularity(self) -> Array:
        """(R,) training targets of each row's item."""
        return np.bincount(self.item[self.train], minlength=int(self.item.max(initial=-1)) + 1)[self.item]


def read(paths: Paths, min_history: int) -> Interactions:
    """Read the interactions of data/events; InputError where they are missing. A training row is a target from
    ``min_history`` rows before its request on."""
    return from_table(table(paths, COLUMNS, RATES), min_history)


def table(paths: Paths, columns: Sequence[str], others: Sequence[str] = ()) -> pa.Table:
    """Columns of all interactions of data/events, in the order of their rows; of ``others`` those that they have.
    InputError where there are none."""
    files = published.interactions(paths.events)
    if not files[0].is_file():
        raise InputError(f"{files[0]} does not exist: run `dti ingest` first")
    there = pq.read_schema(files[0]).names
    wanted = [*columns, *(name for name in others if name in there)]
    return pa.concat_tables([pq.read_table(path, columns=wanted) for path in files])


def from_table(table: pa.Table, min_history: int) -> Interactions:
    """Arrays of a table with the columns ``COLUMNS``, in its own order."""
    position, request, known = (table[name].to_numpy().astype(np.int64) for name in ("position", "request", "known"))
    train = pc.equal(table["split"], "train").fill_null(False).to_numpy()
    return Interactions(
        user=_codes(table["user_id"]),
        item=_codes(table["item_id"]),
        label=table["label"].to_numpy().astype(np.int8),
        position=position,
        request=request,
        known=known,
        train=train & (request >= min_history),
        table=table,
    )


def _codes(column: pa.ChunkedArray) -> Array:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
