"""What the comparison tells to try where no model is above the floors follows from its figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dti_pipeline.evaluation import advice
from dti_pipeline.evaluation.curves import Curves
from dti_pipeline.evaluation.floors import FLOORS, IN_WORDS
from dti_pipeline.evaluation.report import Comparison, Delta
from tests import reports


def compared(delta: Delta, last: float = 0.7, every: float = 0.7) -> Comparison:
    return replace(
        reports.COMPARISON,
        floor_delta={"dti": dict.fromkeys(FLOORS, delta)},
        baselines={"item_rate": 0.6, "item_and_user_rate": last, "item_and_user_rate_all_rows": every},
    )


def advised(comparison: Comparison, *aucs: float) -> str | None:
    points = [(float(i), 100 * i, auc) for i, auc in enumerate(aucs)]
    return advice.sentence(comparison, {"dti": Curves({"learning_curve": points}, 1.0, 0.7)})


def test_a_model_above_every_floor_needs_no_advice() -> None:
    assert advised(compared(Delta(0.01, 0.001, 0.02), 0.6, 0.7), 0.5, 0.7) is None


@pytest.mark.parametrize(
    ("comparison", "aucs", "told"),
    [
        (compared(Delta(0.01, -0.01, 0.03)), (), ["split.test_share"]),
        (compared(Delta(-0.01, -0.03, 0.01)), (0.7, 0.7), ["tokens.template"]),
        (compared(Delta(-0.01, -0.03, 0.01), 0.70, 0.75), (), ["tokens.template", "packing.context"]),
        (compared(Delta(0.01, -0.01, 0.03)), (0.6, 0.7, 0.71), ["split.test_share", "still rising"]),
        (compared(Delta(0.01, -0.01, 0.03)), (0.6, 0.7, 0.65), ["split.test_share", "fell from 0.7000 to 0.6500"]),
        (compared(Delta(None, None, None)), (0.6, 0.7), ["still rising"]),
    ],
)
def test_what_is_told_is_what_the_figures_point_to(
    comparison: Comparison, aucs: tuple[float, ...], told: list[str]
) -> None:
    every = ("split.test_share", "tokens.template", "packing.context", "still rising", "fell from 0.7000 to 0.6500")
    said = advised(comparison, *aucs)
    assert said is not None
    assert said.startswith("To try next with dti, which is not shown to be above every floor: ")
    assert [one for one in every if one in said] == told


def test_where_the_words_tell_rates_an_id_is_told_of() -> None:
    plain = compared(Delta(-0.01, -0.03, 0.01))
    assert "{item_rate}{user_rate}" in (advised(plain) or "")
    deltas = plain.floor_delta["dti"] | {IN_WORDS: Delta(-0.01, -0.03, 0.01)}
    said = advised(replace(plain, floor_delta={"dti": deltas})) or ""
    assert "{item_id}" in said
    assert "{item_rate}" not in said


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert advised(compared(Delta(None, None, None))) is None
