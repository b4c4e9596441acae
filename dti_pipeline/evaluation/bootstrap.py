"""Bootstrap intervals and paired differences of a figure, by resampling users.

Rows of one user are not independent, so whole users are drawn with replacement, as many as there are (the cluster
bootstrap; Field and Welsh 2007). Every figure of one :class:`Users` sees the same draws: differences are paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dti_pipeline.config import EvaluationConfig
from dti_pipeline.evaluation import metrics
from dti_pipeline.evaluation.interactions import Array
from dti_pipeline.evaluation.report import Delta, Figures


class Interval(NamedTuple):
    """Percentile interval of a resampled figure."""

    low: float
    high: float


class Users:
    """The users of N targets, ``user`` (N,), and the draws from them. Memory: O(N + users), draws are not kept."""

    def __init__(self, user: Array, samples: int, seed: int) -> None:
        distinct, self._index = np.unique(user, return_inverse=True)
        self.count = len(distinct)
        self.samples = samples
        self._seed = seed

    def draws(self) -> Iterator[Array]:
        """How often each user was drawn, (users,), once a sample; the same for the same seed."""
        generator = np.random.default_rng(self._seed)
        for _ in range(self.samples):
            drawn = generator.integers(self.count, size=self.count)
            yield np.bincount(drawn, minlength=self.count).astype(np.float64)

    def auc(self, label: Array, score: Array) -> Array:
        """(samples,) AUC of each resample, exact; NaN where it drew one class only. Cost: one sort, O(N) a sample."""
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


def over_seeds(samples: Array, seed: int) -> Array:
    """(samples,) mean of ``samples`` (seeds, samples) over trainings, drawn anew in each sample: a second bootstrap
    level."""
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


class Scoreboard:
    """Sets of scores of the same targets, ``label`` (N,) and ``user`` (N,), measured on the same draws of users."""

    def __init__(self, label: Array, user: Array, settings: EvaluationConfig) -> None:
        self.label, self.user = label, user
        self.users = Users(user, settings.bootstrap_samples, settings.seed)
        self._settings = settings
        self._probabilities: dict[str, Array] = {}
        self._samples: dict[str, Array] = {}

    def add(self, name: str, probability: Array) -> None:
        self._probabilities[name] = probability
        self._samples[name] = self.users.auc(self.label, probability)

    def auc(self, name: str) -> float | None:
        return metrics.auc(self.label, self._probabilities[name])

    def figures(self, name: str) -> Figures:
        """Every metric of one set of scores."""
        measured = metrics.summary(self.label, self._probabilities[name], self.user, self._settings.calibration_bins)
        return replace(measured, auc_interval=interval(self._samples[name], self._settings.confidence))

    def delta(self, name: str, against: str) -> Delta:
        """AUC of ``name`` less that of ``against``, with the interval of the paired resamples."""
        x, y = self.auc(name), self.auc(against)
        found = interval(self._samples[name] - self._samples[against], self._settings.confidence)
        return Delta(x - y if x is not None and y is not None else None, *(found or (None, None)))
