"""Histories to prompts: n context interactions, then k targets. k = 1 is the sliding window.

A prompt is a span of the log: context ``[start, first_target)``, targets ``[first_target, stop)``. With c tokens an
interaction (text and label) and one [SUM] a target, a target costs ``(c + 1) + n c / k`` tokens; the sliding window
pays ``(n + 1) c + 1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.errors import InputError


@dataclass(frozen=True)
class Prompts:
    """``p`` prompts as spans of log rows, in integers of 64 bits, or 32 where a log is shorter than that."""

    start: NDArray[Any]  # (p,) first context row
    first_target: NDArray[Any]  # (p,)
    stop: NDArray[Any]  # (p,) one past the last target
    length: NDArray[Any]  # (p,) tokens: prefix, texts, labels and [SUM]s

    def __len__(self) -> int:
        return len(self.start)

    @property
    def targets(self) -> int:
        return int((self.stop - self.first_target).sum())

    def take(self, order: NDArray[np.int64]) -> Prompts:
        return Prompts(self.start[order], self.first_target[order], self.stop[order], self.length[order])


def cut(
    is_target: NDArray[np.bool_],
    position: NDArray[np.int32],
    lengths: NDArray[np.int32],
    context: int,
    targets: int | None,
    row_length: int,
    prefix_length: int = 0,
) -> Prompts:
    """Cut every user's targets into prompts of up to ``targets`` (None: as many as a row holds).

    ``is_target``, ``position`` (index within the user's history) and ``lengths`` (tokens of text and label) are (m,),
    ordered by user and time. A prompt that would outgrow the row is closed early and the next one opens with a context
    of its own, so no target is lost. Raises InputError where even one target does not fit. Cost: a vectorised step for
    each prompt of the longest history.
    """
    # tokens[i]: of rows before i, as context; a span of targets has one [SUM] each besides.
    tokens = np.append(0, np.cumsum(lengths, dtype=np.int64))
    as_targets = tokens + np.arange(len(tokens))
    history = np.arange(len(position)) - position  # first row of each row's user
    joined = is_target[:-1] & is_target[1:] & (position[1:] > 0)  # to the next row, in a run of a user's targets
    first = np.flatnonzero(is_target & ~np.append(False, joined))
    end = np.flatnonzero(is_target & ~np.append(joined, False)) + 1

    none = np.zeros(0, np.int64)
    parts = [(none, none, none, none)]
    while len(first):
        start = np.maximum(history[first], first - context)
        used = prefix_length + tokens[first] - tokens[start]
        stop = np.searchsorted(as_targets, as_targets[first] + row_length - used, side="right") - 1
        if (stop <= first).any():
            needed = int((used + as_targets[first + 1] - as_targets[first])[stop <= first].max())
            raise InputError(
                f"params key `packing.row_length` is {row_length}, but the longest prompt of packing.context ="
                f" {context} interactions and one target takes {needed} tokens: raise it to"
                f" {-(-needed // 128) * 128}, or lower packing.context or tokens.max_text_tokens"
            )
        stop = np.minimum(stop, end if targets is None else np.minimum(end, first + targets))
        parts.append((start, first, stop, used + as_targets[stop] - as_targets[first]))
        more = stop < end
        first, end = stop[more], end[more]
    cut = Prompts(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return cut.take(np.argsort(cut.first_target, kind="stable"))
