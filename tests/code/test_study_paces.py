"""Seconds and speed-ups are those of trainings that had a machine to themselves, all of one machine."""

from __future__ import annotations

from typing import Any

import pytest

from experiments import analyse, write
from experiments.grid import Grid

FACTS: dict[str, Any] = {
    "dataset": "d", "n": 20, "model": "", "fixes": "", "tokens_per_target": 10.0, "commit": "0123456789abcdef",
    "config": "a", "group": "other", "measure": "quality", "workers": 1, "hardware": "A",
}  # fmt: skip
BASE = FACTS | {"paradigm": "sliding_window", "k": 1, "targets_per_second": 10.0}
DTI = FACTS | {"paradigm": "dti", "k": 50, "targets_per_second": 120.0}
SHARED = DTI | {"workers": 6, "targets_per_second": 40.0, "targets": 1200, "train_seconds": 30.0}
ELSEWHERE = SHARED | {"hardware": "B"}
THERE = [one | {"hardware": "B", "targets_per_second": pace} for one, pace in ((BASE, 5.0), (DTI, 30.0))]


@pytest.mark.parametrize(
    ("change", "speedup"),
    [
        ({}, 12.0), ({"hardware": "B"}, None), ({"workers": 6}, None), ({"n": 5}, None), ({"row_length": 9}, None),
        ({"model": "wide"}, None),
    ],
)  # fmt: skip
def test_pace_of_another_machine_or_of_shared_seconds_is_no_speed_up(
    change: dict[str, Any], speedup: float | None
) -> None:
    row = DTI | change
    for against in (None if change.keys() & {"n", "row_length", "model"} else BASE, None):
        assert analyse.speedup(row, against, [BASE, row]) == speedup


def test_a_row_s_own_sliding_window_comes_before_the_median_of_others() -> None:
    beside = [BASE | {"targets_per_second": 20.0}, DTI | {"targets_per_second": 100.0}]
    assert analyse.speedup(DTI, BASE, [BASE, *beside, DTI]) == 12.0


def test_shared_seconds_are_made_of_a_pace_that_a_run_had_alone() -> None:
    assert analyse.seconds(SHARED, [BASE, DTI, SHARED]) == 10.0
    assert analyse.timed(SHARED | {"tokens": 5000}, [BASE, DTI]) == {
        "train_seconds": 10.0, "targets_per_second": 120.0, "tokens_per_second": 500.0,
    }  # fmt: skip
    assert analyse.timed(DTI, [BASE, DTI]) == {}
    assert analyse.seconds(SHARED, [BASE]) is None


def test_seconds_may_be_of_another_machine_but_all_of_one() -> None:
    def found(rows: list[analyse.Row]) -> tuple[float | None, float | None]:
        return analyse.seconds(ELSEWHERE, rows), analyse.speedup(ELSEWHERE, BASE, [*rows, ELSEWHERE])

    assert found([BASE, DTI]) == (10.0, 12.0)
    row = ELSEWHERE | {"group": "own", "split": "global_time"}
    table = write.group_tables(Grid(others=("own",)), [row, BASE, DTI], "own")
    assert "; seconds: A, commit 0123456789." in table
    assert found([BASE, DTI, *THERE]) == (40.0, 6.0)
    assert found([BASE, DTI, THERE[1]]) == (10.0, 12.0)  # where only one of them was measured there
    assert found([BASE, DTI, THERE[0]]) == (None, None)  # beside a sliding window of B's seconds no line of A's stands
    assert found([BASE, THERE[1]])[1] is None
    assert found([BASE])[0] is None
