"""Bootstrap intervals and paired differences of a figure, by resampling users.

Rows of one user are not independent (one taste, one mood, one streak), so whole users are drawn with replacement,
as many as there are (the cluster bootstrap; Field and Welsh 2007). Intervals are percentiles of the resampled figure.
Every figure of one :class:`Users` sees the same draws: differences of two figures' samples are paired, and what both
share cancels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a resampled figure."""

    low: float
    high: float


class Users:
    """The evaluated targets' users, and the draws from them.

    ``user`` (N,): any whole numbers, one for each target. Memory is O(N + users) at any number of samples: draws are
    made again from the seed, never kept.
    """

    def __init__(self, user: Array, samples: int, seed: int) -> None:
        distinct, self._index = np.unique(user, return_inverse=True)
        self.count = len(distinct)
        self.samples = samples
        self._seed = seed

    def draws(self) -> Iterator[Array]:
        """Counts of each user's draws, (users,), once a sample; multinomial, always the same for the same seed."""
        generator = np.random.default_rng(self._seed)
        for _ in range(self.samples):
            drawn = generator.integers(self.count, size=self.count)
            yield np.bincount(drawn, minlength=self.count).astype(np.float64)

    def auc(self, label: Array, score: Array) -> Array:
        """(samples,) AUC of each resample, NaN where it drew one class only.

        Exact, as :func:`dti_pipeline.evaluation.metrics.auc` with each row weighted by its user's draws: the scores
        are sorted once, then a resample costs O(N). 1000 samples of 100,000 targets: about a second.
        """
        click = np.asarray(label) == 1
        order = np.argsort(score[~click], kind="stable")
        other_users, other_scores = self._index[~click][order], score[~click][order]
        order = np.argsort(score[click], kind="stable")  # in order, so that look-ups below walk memory forwards
        click_users, click_scores = self._index[click][order], score[click][order]
        below = np.searchsorted(other_scores, click_scores, side="left")
        not_above = np.searchsorted(other_scores, click_scores, side="right")
        tied = bool((below != not_above).any())
        result = np.full(self.samples, np.nan)
        weight = np.zeros(len(other_scores) + 1)
        for sample, draw in enumerate(self.draws()):
            np.cumsum(draw[other_users], out=weight[1:])
            clicks = draw[click_users]
            pairs = clicks.sum() * weight[-1]
            if pairs > 0:
                lost = (weight[below] + weight[not_above]) / 2 if tied else weight[below]
                result[sample] = clicks @ lost / pairs
        return result

    def mean(self, values: Array) -> Array:
        """(samples,) mean of per-target ``values`` (N,) in each resample. Cost O(users) a sample."""
        total = np.bincount(self._index, weights=values, minlength=self.count)
        size = np.bincount(self._index, minlength=self.count)
        return np.array([(draw @ total) / (draw @ size) for draw in self.draws()])


def over_seeds(samples: Array, seed: int) -> Array:
    """(samples,) mean over trainings of a figure's ``samples`` (seeds, samples), the trainings drawn anew in each: so
    that an interval counts the luck of a training beside that of the users (a bootstrap of two levels)."""
    count, size = samples.shape
    drawn = np.random.default_rng(seed).integers(count, size=(count, size))
    return np.take_along_axis(samples, drawn, axis=0).mean(axis=0)


def interval(samples: Array, confidence: float) -> Interval | None:
    """The middle ``confidence`` of the samples; None where fewer than half of them are defined."""
    defined = samples[np.isfinite(samples)]
    if len(defined) == 0 or 2 * len(defined) < len(samples):
        return None
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
