"""Prompts of some of a log's targets, such as a day's: their cost follows the targets, not the length of the log."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.packing.prompts import Prompts, cut
from dti_pipeline.packing.store import TokenStore


def cut_some(store: TokenStore, targets: NDArray[np.int64], context: int, most: int | None, row_length: int) -> Prompts:
    """The prompts, of up to ``most`` targets, of these rows of the log (ascending, one at least).

    They are those that :func:`~dti_pipeline.packing.prompts.cut` makes of the whole log with these targets; of each
    user only the rows from the first target's context to the last target are looked at.
    """
    history = targets - store.position[targets]  # first row of each one's user
    seen_to = history + store.seen[targets]
    low = np.maximum(history, seen_to - context)
    opens = np.append(True, np.diff(history) != 0)
    low, size = low[opens], targets[np.append(opens[1:], True)] + 1 - low[opens]
    local = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
    rows = np.repeat(low, size) + local
    is_target = np.zeros(len(rows), bool)
    is_target[np.searchsorted(rows, targets)] = True
    left_out = np.repeat(low - history[opens], size)
    found, _ = cut(
        is_target, local.astype(np.int32), (store.seen[rows] - left_out).astype(np.int32), store.lengths(rows),
        context, most, row_length, store.opening(rows),
    )  # fmt: skip
    return Prompts(rows[found.start], rows[found.first_target], rows[found.stop - 1] + 1, found.length)
