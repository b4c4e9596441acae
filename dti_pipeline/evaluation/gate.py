"""Which model may serve: the rule that gives the alias `champion`, judged from a comparison's figures alone.

A paradigm passes when its AUC is above every cost-free floor and not worse than the sliding window's by more than
``comparison.margin``. Both are asked of the interval, not of the mean (a test of non-inferiority): too few test users
to tell is a failure, not a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BASELINE = "sliding_window"


def judge(comparison: Mapping[str, Any], margin: float) -> dict[str, dict[str, Any]]:
    """For each paradigm ``passed`` and ``reason``, one clause in words.

    ``comparison`` needs ``paradigms``, ``floor_delta`` and ``auc_delta`` as reports/comparison.json has them.
    """
    return {name: _asked(name, comparison, margin) for name in comparison["paradigms"]}


def champion(comparison: Mapping[str, Any]) -> str | None:
    """Of the paradigms that passed the one with the highest AUC; the sliding window, which costs many times the
    training, only where no other passed. None where none did. Reads ``gate``, as :func:`judge` made it."""
    passed = [name for name, asked in comparison["gate"].items() if asked["passed"]]
    others = [name for name in passed if name != BASELINE]
    return max(others or passed, key=lambda name: comparison["paradigms"][name]["auc"], default=None)


def sentence(comparison: Mapping[str, Any]) -> str:
    """Who may serve and why, or why nobody may."""
    gate, name = comparison["gate"], comparison["champion"]
    if name is not None:
        return f"Champion: {name}; it {gate[name]['reason']}."
    reasons = [f"{paradigm} {asked['reason']}" for paradigm, asked in gate.items()]
    return f"No champion: {'; '.join(reasons)}."


def _asked(paradigm: str, comparison: Mapping[str, Any], margin: float) -> dict[str, Any]:
    for floor, delta in comparison["floor_delta"][paradigm].items():
        if delta is None or delta["ci_low"] is None or delta["ci_low"] <= 0:
            return {"passed": False, "reason": f"is not shown to be above the floor {floor}"}
    if paradigm == BASELINE:
        return {"passed": True, "reason": "is above every floor"}
    delta = comparison["auc_delta"].get(paradigm)
    if delta is None:
        return {"passed": False, "reason": f"has no {BASELINE} beside it to compare with"}
    if delta["ci_low"] is None:
        return {"passed": False, "reason": f"has too few test users to be compared with {BASELINE}"}
    low = f"{delta['ci_low']:+.4f} at worst"
    if delta["ci_low"] < -margin:
        return {"passed": False, "reason": f"may lose more than {margin:g} AUC against {BASELINE} ({low})"}
    return {"passed": True, "reason": f"is above every floor and within {margin:g} AUC of {BASELINE} ({low})"}
