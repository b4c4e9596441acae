"""Several sets of scores of the same targets, measured alike and on the same draws of users."""

from __future__ import annotations

from dataclasses import replace

from dti_pipeline.config import EvaluationConfig
from dti_pipeline.evaluation import bootstrap, metrics
from dti_pipeline.evaluation.metrics import Array
from dti_pipeline.evaluation.report import Delta, Figures


class Scoreboard:
    """``label`` (N,), ``user`` (N,), and any number of named probabilities (N,) beside them.

    Cost of a name: one sort and ``bootstrap_samples`` passes over the targets, once.
    """

    def __init__(self, label: Array, user: Array, settings: EvaluationConfig) -> None:
        self.label, self.user = label, user
        self.users = bootstrap.Users(user, settings.bootstrap_samples, settings.seed)
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
        found = bootstrap.interval(self._samples[name], self._settings.confidence)
        measured = metrics.summary(self.label, self._probabilities[name], self.user, self._settings.calibration_bins)
        return replace(measured, auc_interval=(found.low, found.high) if found else None)

    def delta(self, name: str, against: str) -> Delta:
        """AUC of ``name`` less that of ``against`` over all targets (``mean``), with the interval of the paired
        resamples. All None over one class."""
        x, y = self.auc(name), self.auc(against)
        found = bootstrap.interval(self._samples[name] - self._samples[against], self._settings.confidence)
        mean = x - y if x is not None and y is not None else None
        return Delta(mean, found.low if found else None, found.high if found else None)
