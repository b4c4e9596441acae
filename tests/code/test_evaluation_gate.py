"""Which model may serve: only what is shown, with its interval, to be good enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dti_pipeline.evaluation import gate
from dti_pipeline.evaluation.report import Comparison, Delta
from tests import reports


def delta(low: float | None) -> Delta:
    return Delta(0.0, low, None)


def comparison(dti: Delta | None, floor: Delta, **auc: float) -> Comparison:
    names = {"sliding_window": 0.71, "dti": 0.70} | auc
    return replace(
        reports.COMPARISON,
        paradigms={name: replace(reports.COMPARED, auc=value) for name, value in names.items()},
        floor_delta={name: {"item_rate": floor} for name in names},
        auc_delta={"dti": dti} if dti else {},
    )


@pytest.mark.parametrize(
    ("dti", "floor", "passes", "why"),
    [
        (delta(-0.009), delta(0.01), True, "within 0.01 AUC of sliding_window (-0.0090 at worst)"),
        (delta(0.002), delta(0.01), True, "+0.0020 at worst"),
        (delta(-0.011), delta(0.01), False, "may lose more than 0.01 AUC"),
        (delta(None), delta(0.01), False, "too few test users"),
        (None, delta(0.01), False, "has no sliding_window beside it"),
        (delta(-0.001), delta(0.0), False, "not shown to be above the floor item_rate"),
        (delta(-0.001), delta(None), False, "not shown to be above the floor item_rate"),
    ],
)
def test_a_paradigm_must_be_shown_to_be_good_enough(dti: Delta | None, floor: Delta, passes: bool, why: str) -> None:
    decision = gate.decide(comparison(dti, floor))["dti"]
    assert decision.passed is passes
    assert why in decision.reason


def crowned(found: Comparison) -> Comparison:
    found = replace(found, gate=gate.decide(found))
    return replace(found, champion=gate.champion(found))


def test_a_cheap_paradigm_that_passes_goes_before_the_expensive_one() -> None:
    found = crowned(comparison(delta(-0.009), delta(0.01)))
    assert found.champion == "dti"
    assert gate.sentence(found).startswith("Champion: dti; it is above every floor and within 0.01 AUC")


def test_the_sliding_window_serves_where_nothing_else_may() -> None:
    assert crowned(comparison(delta(-0.02), delta(0.01))).champion == "sliding_window"


def test_nobody_serves_below_the_floors() -> None:
    found = crowned(comparison(delta(-0.001), delta(-0.01)))
    assert found.champion is None
    assert gate.sentence(found).startswith("No champion: sliding_window is not shown to be above the floor")


def test_of_two_that_pass_the_better_one_serves() -> None:
    found = comparison(delta(-0.001), delta(0.01), dti_isolated=0.705)
    assert crowned(replace(found, auc_delta={**found.auc_delta, "dti_isolated": delta(-0.001)})).champion == (
        "dti_isolated"
    )
