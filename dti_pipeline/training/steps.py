"""The rows of each optimizer step: a pure function of the plan, the seed and the step's number.

Rows are drawn in a new order each epoch and dealt out to as many steps as make about ``targets_per_step`` *targets*
each, so that a step means the same for every paradigm. All steps have the same number of rows, or one less: rows are
packed full, so that equal rows are nearly equal targets, and a GPU, whose micro-batches have one shape, computes almost
no empty rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    number: int  # from 0, over all epochs
    rows: NDArray[np.int64]  # rows of the plan, of all processes together
    targets: int  # in those rows
    targets_before: int  # in all earlier steps


class _Epoch(NamedTuple):
    number: int
    order: NDArray[np.int64]  # rows, as drawn
    bounds: NDArray[np.int64]  # (steps + 1,) first row of each step, in ``order``
    before: NDArray[np.int64]  # (steps + 1,) targets before each step


class Steps:
    """The steps of a training. ``targets_of_row`` (r,) counts the targets of each row of the plan."""

    def __init__(self, targets_of_row: NDArray[np.int64], targets_per_step: int, epochs: float, seed: int) -> None:
        self._targets, self._seed = targets_of_row, seed
        self._per_epoch = int(targets_of_row.sum())
        wanted = max(1, round(self._per_epoch / targets_per_step))
        self._steps = min(wanted, len(targets_of_row))  # a step has a row at least
        self._drawn = self._draw(0)
        self.count = max(1, round(epochs * self._steps)) if epochs else 0
        whole, rest = divmod(self.count, self._steps)
        #: Targets seen in all steps together.
        self.targets = whole * self._per_epoch + int(self._draw(whole).before[rest])

    @property
    def mean_targets(self) -> float:
        """Targets of a step on average: more than were asked for where a row holds more."""
        return self._per_epoch / self._steps

    @property
    def most_rows(self) -> int:
        """Rows of the largest step."""
        return -(-len(self._targets) // self._steps)

    def __getitem__(self, number: int) -> Step:
        number_of_epoch, index = divmod(number, self._steps)
        if self._drawn.number != number_of_epoch:
            self._drawn = self._draw(number_of_epoch)
        epoch = self._drawn
        before = int(epoch.before[index])
        return Step(
            number,
            epoch.order[epoch.bounds[index] : epoch.bounds[index + 1]],
            int(epoch.before[index + 1]) - before,
            number_of_epoch * self._per_epoch + before,
        )

    def _draw(self, epoch: int) -> _Epoch:
        """Shuffle the rows and cut them into equal shares."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._targets))
        running = np.concatenate([[0], np.cumsum(self._targets[order])])
        bounds = np.arange(self._steps + 1) * len(order) // self._steps
        return _Epoch(epoch, order, bounds, running[bounds])
