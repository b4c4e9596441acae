"""Metrics of click-through predictions: pure functions of labels and probabilities.

Shapes: ``label`` (N,) of 0 and 1, ``score`` or ``probability`` (N,) of floats, ``user`` (N,) of whole numbers. A figure
that is not defined (an AUC over one class, a mean over nothing) is None, never NaN. Cost: one sort at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dti_pipeline.evaluation.interactions import Array
from dti_pipeline.evaluation.report import Figures, Slice

#: Distance from 0 and 1 to which the log loss clips probabilities: about the resolution of float32.
CLIP = 1e-7
#: A target counts as a predicted click from this probability on (F1, accuracy).
THRESHOLD = 0.5
#: First value of each bucket; the last one is open.
HISTORY_BUCKETS = (0, 10, 20, 50, 100, 200)
POPULARITY_BUCKETS = (0, 1, 5, 20, 100, 500)
COLD_BUCKETS = (0, 5)  # an item with fewer than 5 training targets is cold


class GroupedAuc(NamedTuple):
    """Mean of the users' own AUCs, in two ways, with what they rest on."""

    value: float | None  # gAUC: weighted with the users' numbers of targets
    equal: float | None  # UAUC: every user counts the same
    users: int  # with both classes: the ones counted
    users_skipped: int  # with one class: their AUC is not defined
    targets: int  # of the counted users


@dataclass(frozen=True)
class Bin:
    """One bin of a calibration curve."""

    predicted: float  # mean
    observed: float  # click rate
    count: int


def auc(label: Array, score: Array) -> float | None:
    """Area under the ROC curve, ties counting one half: the Mann-Whitney statistic (Hanley and McNeil 1982)."""
    return group_auc(label, score, np.zeros(len(label), dtype=np.int64)).value


def group_auc(label: Array, score: Array, user: Array) -> GroupedAuc:
    """gAUC: each user's own AUC, averaged with the user's number of targets as weight (Zhu et al. 2017); and UAUC,
    averaged without weights (Zhang et al. 2023, CoLLM). Users with one class are not counted in either."""
    if len(label) == 0:
        return GroupedAuc(None, None, 0, 0, 0)
    order = np.lexsort((score, user))
    label, score, user = np.asarray(label)[order], np.asarray(score)[order], np.asarray(user)[order]
    # Runs of equal (user, score): clicks and non-clicks in each, and the non-clicks of the same user ranked below it.
    run = np.flatnonzero(np.r_[True, (np.diff(user) != 0) | (np.diff(score) != 0)])
    clicks = np.add.reduceat(label.astype(np.float64), run)
    others = np.diff(np.r_[run, len(label)]) - clicks
    first = np.flatnonzero(np.r_[True, np.diff(user[run]) != 0])
    below = np.cumsum(others) - others
    below -= np.repeat(below[first], np.diff(np.r_[first, len(run)]))
    won = np.add.reduceat(clicks * (below + others / 2), first)
    clicks, others = np.add.reduceat(clicks, first), np.add.reduceat(others, first)
    both = (clicks > 0) & (others > 0)
    weight = (clicks + others)[both]
    own = won[both] / (clicks * others)[both]
    mean, equal = (float(np.average(own, weights=weight)), float(own.mean())) if len(own) else (None, None)
    return GroupedAuc(mean, equal, int(both.sum()), int((~both).sum()), int(weight.sum()))


def log_loss(label: Array, probability: Array) -> float | None:
    """Mean cross entropy in nats, probabilities clipped by ``CLIP``: lower is better."""
    p = np.clip(np.asarray(probability, dtype=np.float64), CLIP, 1 - CLIP)
    return _mean(-np.where(np.asarray(label) == 1, np.log(p), np.log1p(-p)))


def _mean(values: Array) -> float | None:
    return float(np.mean(values)) if len(values) else None


def normalised_entropy(label: Array, probability: Array) -> float | None:
    """Log loss over the entropy of the targets' own click rate (He et al. 2014, section 3): 1.0 is the score of always
    answering that rate."""
    loss, rate = log_loss(label, probability), _mean(label)
    if loss is None or rate is None or rate in (0.0, 1.0):
        return None
    return loss / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))


def f1(label: Array, probability: Array) -> float | None:
    """Harmonic mean of precision and recall of "probability >= THRESHOLD"; 0.0 where no click was found."""
    if len(label) == 0:
        return None
    predicted, clicked = np.asarray(probability) >= THRESHOLD, np.asarray(label) == 1
    total = int(predicted.sum() + clicked.sum())
    return 2 * int((predicted & clicked).sum()) / total if total else 0.0


def accuracy(label: Array, probability: Array) -> float | None:
    """Share of targets on the right side of THRESHOLD."""
    return _mean((np.asarray(probability) >= THRESHOLD) == (np.asarray(label) == 1))


def brier(label: Array, probability: Array) -> float | None:
    """Mean squared error of the probabilities (Brier 1950): lower is better."""
    return _mean((np.asarray(probability) - np.asarray(label)) ** 2)


def calibration(label: Array, probability: Array, bins: int) -> list[Bin]:
    """Reliability curve in bins of equal mass (Nguyen and O'Connor 2015), lowest first. Equal predictions share a bin;
    bins left empty by that are not listed."""
    if len(label) == 0:
        return []
    _, group, size = np.unique(np.asarray(probability), return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - size / 2
    which = np.minimum((middle * bins / len(label)).astype(np.int64), bins - 1)[group]
    count = np.bincount(which, minlength=bins)
    predicted, observed = (np.bincount(which, weights=values, minlength=bins) for values in (probability, label))
    return [
        Bin(float(predicted[b] / count[b]), float(observed[b] / count[b]), int(count[b])) for b in np.flatnonzero(count)
    ]


def expected_calibration_error(curve: list[Bin]) -> float | None:
    """ECE: mean distance of prediction and observation over the bins, weighted by count (Naeini et al. 2015)."""
    total = sum(one.count for one in curve)
    return sum(abs(one.predicted - one.observed) * one.count for one in curve) / total if total else None


def roc(label: Array, score: Array, points: int = 200) -> list[tuple[float, float]]:
    """Points (false positive rate, true positive rate) from (0, 0) to (1, 1), at most ``points``, evenly along the
    curve. Empty over one class."""
    label = np.asarray(label)
    clicks = int(label.sum())
    if clicks in (0, len(label)):
        return []
    order = np.argsort(-np.asarray(score), kind="stable")
    end = np.flatnonzero(np.r_[np.diff(np.asarray(score)[order]) != 0, True])
    true = np.cumsum(label[order])[end]
    fpr = np.r_[0.0, (end + 1 - true) / (len(label) - clicks)]
    tpr = np.r_[0.0, true / clicks]
    keep = np.unique(np.searchsorted(fpr + tpr, np.linspace(0, 2, points)).clip(max=len(fpr) - 1))
    return [(float(x), float(y)) for x, y in zip(fpr[keep], tpr[keep], strict=True)]


def summary(label: Array, probability: Array, user: Array, bins: int) -> Figures:
    """Every metric of one set of probabilities; without the interval, which needs resamples."""
    grouped = group_auc(label, probability, user)
    rate, mean = _mean(label), _mean(probability)
    return Figures(
        auc=auc(label, probability),
        log_loss=log_loss(label, probability),
        gauc=grouped.value,
        uauc=grouped.equal,
        gauc_users=grouped.users,
        gauc_users_skipped=grouped.users_skipped,
        ne=normalised_entropy(label, probability),
        f1=f1(label, probability),
        accuracy=accuracy(label, probability),
        brier=brier(label, probability),
        ece=expected_calibration_error(calibration(label, probability, bins)),
        mean_prediction=mean,
        predicted_over_observed=mean / rate if mean is not None and rate else None,
    )


def slices(label: Array, probability: Array, value: Array, starts: tuple[int, ...]) -> tuple[Slice, ...]:
    """Count, AUC and log loss of the targets in each bucket of ``value`` (N,), named by their ``starts``."""
    which = np.searchsorted(np.asarray(starts), value, side="right") - 1
    result = []
    for b, start in enumerate(starts):
        rows = which == b
        if rows.any():
            last = starts[b + 1] - 1 if b + 1 < len(starts) else None
            name = f"{start}+" if last is None else str(start) if last == start else f"{start}-{last}"
            y, p = np.asarray(label)[rows], np.asarray(probability)[rows]
            result.append(Slice(name, int(rows.sum()), auc(y, p), log_loss(y, p)))
    return tuple(result)
