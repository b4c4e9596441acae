"""The rows of each optimizer step: a pure function of the plan, the seed and the step's number.

Rows are drawn in a new order each epoch and dealt out to as many steps as make about ``targets_per_step`` *targets*
each, so that a step means the same for every paradigm. All steps have the same number of rows, or one less: rows are
packed full, so that equal rows are nearly equal targets, and a GPU, whose micro-batches have one shape, computes almost
no empty rows.

A plan of more than :data:`PART` rows is drawn in parts. With g parts, each has every g-th row: a sample of the whole
plan. Parts come in a new order each epoch, and so do the rows of a part. No process holds an array of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.packing.reader import Rows

#: Rows that are drawn at a time, at most: some 70 MB while they are drawn.
PART = 1 << 20


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int  # from 0, over all epochs
    rows: NDArray[np.int64]  # rows of the plan, of all processes together
    targets: int  # in those rows
    targets_before: int  # in all earlier steps


class _Part(NamedTuple):
    """Rows at ``[begin, begin + len(order))`` of an epoch's order."""

    epoch: int
    begin: int
    order: NDArray[np.int64]  # rows, as drawn
    before: NDArray[np.int64]  # (rows + 1,) targets of the epoch before each


class Steps:
    """The steps of a training of ``rows``. Cost: one read of the plan, and of each part when it is drawn."""

    def __init__(self, rows: Rows, targets_per_step: int, epochs: float, seed: int) -> None:
        self._rows, self._length, self._seed = rows, len(rows), seed
        self._parts = max(1, -(-self._length // PART))
        self._targets = self._targets_of_parts()
        self._per_epoch = int(self._targets.sum())
        wanted = max(1, round(self._per_epoch / targets_per_step))
        self._steps = min(wanted, self._length)  # a step has a row at least
        self._drawn: _Part | None = None
        self.count = max(1, round(epochs * self._steps)) if epochs else 0
        #: Targets seen in all steps together.
        self.targets = self._before(self.count)

    @property
    def mean_targets(self) -> float:
        """Targets of a step on average: more than were asked for where a row holds more."""
        return self._per_epoch / self._steps

    @property
    def most_rows(self) -> int:
        """Rows of the largest step."""
        return -(-self._length // self._steps)

    def __getitem__(self, number: int) -> Step:
        epoch, index = divmod(number, self._steps)
        begin, end = self._position(index), self._position(index + 1)
        before, rows = self._before(number), []
        while begin < end:
            part = self._part(epoch, begin)
            rows.append(part.order[begin - part.begin : end - part.begin])
            begin += len(rows[-1])
        last = int(part.before[end - part.begin]) + epoch * self._per_epoch
        return Step(number, rows[0] if len(rows) == 1 else np.concatenate(rows), last - before, before)

    def _position(self, index: int) -> int:
        """Where step ``index`` of an epoch begins in its order."""
        return index * self._length // self._steps

    def _before(self, number: int) -> int:
        """Targets of all steps before step ``number``."""
        epoch, index = divmod(number, self._steps)
        if not index:
            return epoch * self._per_epoch
        part = self._part(epoch, self._position(index))
        return epoch * self._per_epoch + int(part.before[self._position(index) - part.begin])

    def _targets_of_parts(self) -> NDArray[np.int64]:
        """Targets of each part's rows in an epoch."""
        found, first = np.zeros(self._parts, np.int64), 0
        for counts in self._rows.targets_in_chunks():
            part = np.arange(first, first + len(counts)) % self._parts
            found += np.bincount(part, counts, self._parts).astype(np.int64)
            first += len(counts)
        return found

    def _part(self, epoch: int, position: int) -> _Part:
        """The part of an epoch's order that holds ``position``."""
        drawn = self._drawn
        if drawn is None or drawn.epoch != epoch or not 0 <= position - drawn.begin < len(drawn.order):
            drawn = self._drawn = self._draw(epoch, position)
        return drawn

    def _draw(self, epoch: int, position: int) -> _Part:
        """Shuffle the parts, and the rows of the one that holds ``position``."""
        order = np.random.default_rng([self._seed, epoch, self._parts]).permutation(self._parts)
        ends = np.cumsum((self._length - order + self._parts - 1) // self._parts)
        place = int(np.searchsorted(ends, position, side="right"))
        part = int(order[place])
        rows = np.arange(part, self._length, self._parts)
        targets, shuffled = self._rows.targets(rows), np.random.default_rng([self._seed, epoch, part])
        drawn = shuffled.permutation(len(rows))
        earlier = int(self._targets[order[:place]].sum())
        before = earlier + np.concatenate([[0], np.cumsum(targets[drawn])])
        return _Part(epoch, int(ends[place]) - len(rows), rows[drawn], before)
