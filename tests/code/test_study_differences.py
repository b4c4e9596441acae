"""Differences of AUC between rows: of one training, and of all seeds of a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dti_pipeline.evaluation import metrics
from experiments import analyse
from experiments.analyse import Line
from experiments.grid import DataSet, Grid, Group
from experiments.run import keep_predictions

USERS, EACH = 40, 12
COLUMN = "auc_difference_unfixed"


def row(work: Path, fixes: str, seed: int, skill: float) -> dict[str, Any]:
    """A row whose scores know the label as well as ``skill`` says."""
    draw = np.random.default_rng(seed)
    user = np.repeat(np.arange(USERS), EACH)
    label = np.random.default_rng(0).integers(0, 2, len(user))
    score = (skill * label + draw.normal(0, 1, len(user))).astype(np.float32)
    config = f"{fixes or 'plain'}{seed}"
    keep_predictions(work / "log" / "runs" / config, np.arange(len(user)), user, label, score)
    return {
        "config": config, "dataset": "log", "paradigm": "dti", "k": 5, "n": 3, "fixes": fixes, "model": "",
        "epochs": 1.0, "seed": seed, "auc": metrics.auc(label, score),
    }  # fmt: skip


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any] | None]]:
    fixed = [row(tmp_path, "fix", seed, 1.5) for seed in (1, 2, 3)]
    return fixed, {one["config"]: row(tmp_path, "", one["seed"], 1.0) for one in fixed}


def at(work: Path, rows_of: Any) -> Callable[[str], Any]:
    """Scores of all rows of the pairs, where they lie."""
    fixed, plain = rows_of
    known = {one["config"]: one for one in (*fixed, *plain.values())}
    return lambda config: analyse.resampled(known[config], work)


def test_a_line_has_the_interval_of_its_mean_beside_each_seed_s(pairs: Any, tmp_path: Path) -> None:
    fixed, plain = pairs
    analyse.differences(Line(tuple(fixed)), COLUMN, plain, at(tmp_path, pairs))
    found = [one[COLUMN] for one in fixed]
    for one, difference in zip(fixed, found, strict=True):
        other = plain[one["config"]]
        assert difference["mean"] == pytest.approx(one["auc"] - other["auc"], abs=1e-6)
        assert difference["against"] == other["config"]
        assert difference["low"] < difference["mean"] < difference["high"]
        assert difference["seeds"] == [each["config"] for each in fixed]
    assert len({(difference["seeds_low"], difference["seeds_high"]) for difference in found}) == 1
    assert found[0]["seeds_low"] < np.mean([difference["mean"] for difference in found]) < found[0]["seeds_high"]


def test_a_seed_more_makes_the_line_s_interval_anew(pairs: Any, tmp_path: Path) -> None:
    fixed, plain = pairs
    analyse.differences(Line(tuple(fixed[:2])), COLUMN, plain, at(tmp_path, pairs))
    before = fixed[0][COLUMN]
    analyse.differences(Line(tuple(fixed)), COLUMN, plain, at(tmp_path, pairs))
    assert fixed[0][COLUMN]["seeds_low"] != before["seeds_low"]
    assert {key: fixed[0][COLUMN][key] for key in ("mean", "low", "high")} == {
        key: before[key] for key in ("mean", "low", "high")
    }


def test_what_was_found_stands_where_the_scores_are_gone(pairs: Any, tmp_path: Path) -> None:
    fixed, plain = pairs
    analyse.differences(Line(tuple(fixed)), COLUMN, plain, at(tmp_path, pairs))
    before = [dict(one[COLUMN]) for one in fixed]
    analyse.differences(Line(tuple(fixed)), COLUMN, plain, at(tmp_path / "elsewhere", pairs))
    assert [one[COLUMN] for one in fixed] == before
    fixed[0][COLUMN] = None  # one is new: without scores there is no interval, and none is made up
    analyse.differences(Line(tuple(fixed)), COLUMN, plain, at(tmp_path / "elsewhere", pairs))
    assert fixed[0][COLUMN]["low"] is None
    assert fixed[0][COLUMN]["mean"] == before[0]["mean"]
    assert fixed[1][COLUMN] == before[1] | {"seeds_low": None, "seeds_high": None}


def test_a_row_is_held_against_the_same_without_fixes() -> None:
    same = {"dataset": "log", "paradigm": "dti", "k": 5, "n": 3, "model": "", "epochs": 1.0}
    fixed, plain = ({**same, "fixes": fixes, "seed": 1} for fixes in ("fix", ""))
    assert analyse.identity(fixed, "fixes") == analyse.identity(plain, "fixes")
    for change in ({"seed": 2}, {"k": 10}, {"paradigm": "dti_isolated"}, {"epochs": 2.0}):
        assert analyse.identity(fixed, "fixes") != analyse.identity(plain | change, "fixes")


def test_a_model_of_another_kind_is_held_against_the_recipe_s_sliding_window() -> None:
    grid = Grid(data_sets={"demo": DataSet()}, groups=(Group("main", ("demo",), n=(5,)),))
    base = grid.runs[0].facts()
    other = {"dataset": "demo", "paradigm": "gbdt", "n": 5, "seed": 2}
    longer = base | {"epochs": 3.0, "config": "longer", "seed": 2}
    wider = base | {"row_length": 2048, "config": "wider", "seed": 2}
    assert analyse.window_of_recipe(grid, other, [longer, wider, base]) == base["config"]
    assert analyse.window_of_recipe(grid, other, [longer, base, base | {"config": "second", "seed": 2}]) == "second"
    assert analyse.window_of_recipe(grid, other, [longer, wider]) is None
    assert analyse.window_of_recipe(grid, other | {"dataset": "elsewhere"}, [base]) is None
