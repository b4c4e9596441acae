"""Histories to prompts: n context interactions, then k targets. k = 1 is the sliding window.

A prompt is two spans of the log: context, the n rows before the first target's request and what later targets see
besides; and targets ``[first_target, stop)``. With c tokens an interaction (text and label) and one [SUM] a target, a
target costs ``(c + 1) + n c / k`` tokens; the sliding window pays ``(n + 1) c + 1``. Requests are not parted, as their
rows share a context: m candidates cost ``n c + m (c + 1)`` tokens in any prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.errors import InputError


@dataclass(frozen=True)
class Prompts:
    """``p`` prompts as spans of log rows, in integers of 64 bits, or 32 where a log is shorter than that. Of the rows
    ``[start, first_target)`` only those that some target sees stand in the prompt."""

    start: NDArray[Any]  # (p,) first context row
    first_target: NDArray[Any]  # (p,)
    stop: NDArray[Any]  # (p,) one past the last target
    length: NDArray[Any]  # (p,) tokens: prefix, user's text, texts, labels and [SUM]s

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
    seen: NDArray[np.int32],
    lengths: NDArray[np.int32],
    context: int,
    targets: int | None,
    row_length: int,
    opening: NDArray[np.int64] | int = 0,
) -> tuple[Prompts, int]:
    """Cut every user's targets into prompts of up to ``targets`` (None: as many as a row holds), and how many of them a
    full row has ended early.

    ``is_target``, ``position`` (index within the user's history), ``seen`` (rows of the history in its context) and
    ``lengths`` (tokens of text and label) are (m,), ordered by user and time; so is ``opening``, the tokens that open a
    prompt of the row's user, unless it is one number for all. A prompt holds whole requests, one at
    least, whatever ``targets`` is. One that would outgrow the row is closed early and the next opens with a context of
    its own, so no target is lost; only a request that does not fit a row is parted. Raises InputError where even one
    target does not fit. Cost: some vectorised steps for each prompt of the longest history, or of the longest request
    where ``targets`` is 1.
    """
    # tokens[i]: of rows before i, as context; a span of targets has one [SUM] each besides.
    tokens = np.append(0, np.cumsum(lengths, dtype=np.int64))
    as_targets = tokens + np.arange(len(tokens))
    opening = np.broadcast_to(opening, len(position))
    history = np.arange(len(position)) - position  # first row of each row's user
    seen_to = history + seen  # the row behind each row's context
    joined = is_target[:-1] & is_target[1:] & (position[1:] > 0)  # to the next row, in a run of a user's targets
    together = joined & (seen[1:] == seen[:-1])  # in one request
    if targets == 1:
        joined = together  # a prompt is a request: all are cut at once, however long a history is
    first = np.flatnonzero(is_target & ~np.append(False, joined))
    end = np.flatnonzero(is_target & ~np.append(joined, False)) + 1
    request, behind = _requests(together)

    def whole(first: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.int64]:
        """The last row up to ``stop`` that no request goes beyond; ``stop`` where that is not behind ``first``."""
        return np.where(request[stop] > first, request[stop], stop)

    def length(start: NDArray[Any], first: NDArray[Any], stop: NDArray[Any]) -> NDArray[np.int64]:
        """Tokens of prompts."""
        context_end = np.maximum(start, np.minimum(first, seen_to[stop - 1]))
        return opening[first] + tokens[context_end] - tokens[start] + as_targets[stop] - as_targets[first]

    none = np.zeros(0, np.int64)
    parts, ended = [(none, none, none, none)], 0
    while len(first):
        start = np.maximum(history[first], seen_to[first] - context)
        tokens_to = partial(length, start, first)
        wanted = end if targets is None else whole(first, np.minimum(end, first + targets))
        wanted = np.maximum(wanted, behind[first])
        stop = _last_that_fits(first, np.minimum(wanted, first + row_length), tokens_to, row_length)
        if (stop <= first).any():
            needed = int(tokens_to(first + 1)[stop <= first].max())
            raise InputError(
                f"params key `packing.row_length` is {row_length}, but the longest prompt of packing.context ="
                f" {context} interactions and one target takes {needed} tokens: raise it to"
                f" {-(-needed // 128) * 128}, or lower packing.context or tokens.max_text_tokens"
            )
        ended += int((stop < wanted).sum())
        stop = np.where(stop < wanted, whole(first, stop), stop)
        parts.append((start, first, stop, tokens_to(stop)))
        more = stop < end
        first, end = stop[more], end[more]
    cut = Prompts(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    return cut.take(np.argsort(cut.first_target, kind="stable")), ended


def _requests(joined: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First row of each row's request (m + 1,), and the row behind it (m,), from whether rows are joined to the next
    (m - 1,)."""
    rows = np.arange(len(joined) + 1)
    opens = np.append(True, ~joined)
    request = np.maximum.accumulate(np.where(opens, rows, 0))
    bounds = np.append(rows[opens], len(rows))
    return np.append(request, len(rows)), bounds[np.cumsum(opens)]


def _last_that_fits(
    first: NDArray[np.int64],
    most: NDArray[np.int64],
    tokens_to: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    row_length: int,
) -> NDArray[np.int64]:
    """The last row in ``first .. most`` that a prompt of ``row_length`` tokens can end before: a binary search, since
    the tokens up to a row ascend."""
    low, high = first, most
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits, open_ = tokens_to(np.maximum(middle, first + 1)) <= row_length, low < high
        low, high = np.where(open_ & fits, middle, low), np.where(open_ & ~fits, middle - 1, high)
    return low
