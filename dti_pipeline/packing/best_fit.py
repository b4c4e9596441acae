"""Prompts to rows of one constant length: best-fit decreasing, which needs at most 11/9 of the fewest rows.

Prompts have few distinct lengths, so all of one length are placed at once: they fill the tightest rows first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Packed:
    """The row of each prompt."""

    row: NDArray[np.int64]  # (p,) row of each prompt
    rows: int  # how many rows there are


def pack(lengths: NDArray[np.int64], row_length: int, seed: int) -> Packed:
    """Place ``p`` prompts of ``lengths`` tokens (each at most ``row_length``) into rows.

    Prompts of equal length are dealt in random order, so that users mix, and rows are shuffled: the same seed gives
    the same rows. Cost: O(p log p), then one vectorised step for each pair of a prompt length and a room left.
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(lengths))
    order = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    row = np.empty(len(lengths), np.int64)
    by_room: dict[int, NDArray[np.int64]] = {}  # rows with exactly this much room
    rows = 0

    def fill(group: NDArray[np.int64], bins: NDArray[np.int64], room: int, length: int) -> NDArray[np.int64]:
        """Put prompts of one length into rows of one room; returns the prompts that are left."""
        each = room // length
        used = min(len(bins), -(-len(group) // each))
        placed = min(len(group), used * each)
        row[group[:placed]] = np.repeat(bins[:used], each)[:placed]
        in_last = placed - (used - 1) * each
        keep(room - each * length, bins[: used - 1])
        keep(room - in_last * length, bins[used - 1 : used])
        keep(room, bins[used:])
        return group[placed:]

    def keep(room: int, bins: NDArray[np.int64]) -> None:
        if len(bins) and room:
            by_room[room] = np.concatenate([by_room[room], bins]) if room in by_room else bins

    distinct, counts = np.unique(lengths, return_counts=True)
    taken = 0
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        group = order[taken : taken + count]
        taken += count
        for room in sorted(r for r in by_room if r >= length):
            if not len(group):
                break
            group = fill(group, by_room.pop(room), room, length)
        if len(group):
            fresh = np.arange(rows, rows + -(-len(group) // (row_length // length)))
            rows += len(fresh)
            fill(group, fresh, row_length, length)
    return Packed(random.permutation(rows)[row], rows)
