"""Promotion gate: the rule that gives the alias `champion`, from a comparison's figures alone.

A paradigm passes when its AUC is above every cost-free floor and not worse than the sliding window's by more than
``comparison.margin``. Both are asked of the interval, not of the mean (a test of non-inferiority): too few test users
to tell is a failure, not a pass.
"""

from __future__ import annotations

from dti_pipeline.evaluation.report import Comparison, Decision
from dti_pipeline.paradigms import BASELINE

BASE = BASELINE.name


def decide(comparison: Comparison) -> dict[str, Decision]:
    """For each paradigm whether it passed, and why; by ``floor_delta``, ``auc_delta`` and ``protocol.margin``."""
    return {name: _decision(name, comparison) for name in comparison.paradigms}


def champion(comparison: Comparison) -> str | None:
    """Of the paradigms that passed the one with the highest AUC; the sliding window, which costs many times the
    training, only where no other passed. None where none did. Reads ``gate``, as :func:`decide` made it."""
    passed = {name: comparison.paradigms[name].auc or 0.0 for name, found in comparison.gate.items() if found.passed}
    others = [name for name in passed if name != BASE]
    return max(others or passed, key=passed.__getitem__, default=None)


def sentence(comparison: Comparison) -> str:
    """The champion and why, or why there is none."""
    name = comparison.champion
    if name is not None:
        return f"Champion: {name}; it {comparison.gate[name].reason}."
    reasons = [f"{paradigm} {found.reason}" for paradigm, found in comparison.gate.items()]
    return f"No champion: {'; '.join(reasons)}."


def _decision(paradigm: str, comparison: Comparison) -> Decision:
    margin = comparison.protocol.margin
    for floor, delta in comparison.floor_delta[paradigm].items():
        if delta.ci_low is None or delta.ci_low <= 0:
            return Decision(False, f"is not shown to be above the floor {floor}")
    if paradigm == BASE:
        return Decision(True, "is above every floor")
    if paradigm not in comparison.auc_delta:
        return Decision(False, f"has no {BASE} beside it to compare with")
    low = comparison.auc_delta[paradigm].ci_low
    if low is None:
        return Decision(False, f"has too few test users to be compared with {BASE}")
    if low < -margin:
        return Decision(False, f"may lose more than {margin:g} AUC against {BASE} ({low:+.4f} at worst)")
    return Decision(True, f"is above every floor and within {margin:g} AUC of {BASE} ({low:+.4f} at worst)")
