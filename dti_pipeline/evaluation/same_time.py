"""What the time that a paradigm saves buys: how far the baseline comes in it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dti_pipeline.evaluation.curves import Curves
from dti_pipeline.evaluation.report import Comparison, SameTime
from dti_pipeline.paradigms import BASELINE


def of(comparison: Comparison, curves: Mapping[str, Curves]) -> dict[str, SameTime]:
    """By paradigm, of those that take less time than the baseline and were judged on validation rows.

    The baseline's validation AUC lies on the line between the points at which it was judged.
    """
    found = {}
    for name, speedup in comparison.speedup.items():
        base, other = comparison.paradigms[BASELINE.name], comparison.paradigms[name]
        share = other.targets / (base.targets * speedup)
        judged = curves[name].points["learning_curve"]
        if share < 1 and judged:
            found[name] = SameTime(share, _at(curves[BASELINE.name], share * base.targets), judged[-1][2])
    return found


def _at(curves: Curves, targets: float) -> float | None:
    """Validation AUC after so many targets; None before the first time it was judged, or where it never was."""
    judged = curves.points["learning_curve"]
    seen, aucs = [point[1] for point in judged], [point[2] for point in judged]
    return float(np.interp(targets, seen, aucs)) if judged and targets >= seen[0] else None
