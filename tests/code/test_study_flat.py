"""The flat file of a study, shares of the targets, and models of several sizes in one picture; rows are made up."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dti_pipeline.packing import limits
from dti_pipeline.paradigms import names
from experiments import analyse, flat, pictures, write
from experiments import grid as grids
from experiments.grid import DataSet, Grid, Group

ROOT = Path(__file__).resolve().parents[2]
#: Keys of a row that other work reads.
CONTRACT = {
    "dataset", "model", "paradigm", "k", "n", "fixes", "delay", "seed", "epochs", "auc", "auc_streaming", "uauc",
    "log_loss", "train_seconds", "speedup", "hardware", "commit", "command", "published_split",
}  # fmt: skip
MEASURED = {
    "hardware": "card", "commit": "0123456789", "auc": 0.75, "auc_streaming": 0.74, "uauc": 0.7, "log_loss": 0.6,
    "train_seconds": 30.0, "targets": 1200, "tokens_per_target": 10.0, "workers": 2, "steps": 9, "test_targets": 9,
    "test_users": 3, "auc_by_item": {"0-4": 0.6, "5+": 0.8, "0": 0.5}, "targets_per_second": 40.0,
}  # fmt: skip


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """Two sizes of a model on one log, which was split as published."""
    params = {"split": {"rule": "column"}, "events": {"columns": {"split": "part"}, "source": "table"}}
    small, large = (DataSet(log="log", model=name, params=params) for name in ("small", "large"))
    quality = Group(name="quality", data_sets=("log", "log-large"), paradigms=("sliding_window", "dti"))
    return Grid(
        results="results", flat="flat.json", data_sets={"log": small, "log-large": large},
        groups=(quality, replace(quality, name="speed", measure="speed")), figures={"auc_models": ("quality",)},
        path=str(tmp_path / "study.yaml"),
    )  # fmt: skip


def rows_of(grid: Grid, **alone: Any) -> list[dict[str, Any]]:
    """Rows of trainings that ran two at a time, and of those alone at ten times their pace."""
    found = []
    for run in grid.runs:
        row = run.facts() | MEASURED
        if run.measure == "speed":
            pace = {"sliding_window": 100.0, "dti": 1200.0}[run.paradigm]
            row |= {"workers": 1, "targets_per_second": pace, "auc": None} | alone
        found.append(row)
    return found


def test_a_row_has_what_others_read_and_seconds_of_trainings_alone(grid: Grid, tmp_path: Path) -> None:
    rows = rows_of(grid)
    analyse.derive(grid, rows, tmp_path)
    flat.write(grid, rows)
    found = json.loads((tmp_path / "flat.json").read_text())
    assert [(row["dataset"], row["model"], row["paradigm"]) for row in found] == [
        ("log", "small", "sliding_window"), ("log", "small", "dti"),
        ("log", "large", "sliding_window"), ("log", "large", "dti"),
    ]  # fmt: skip
    for row in found:
        assert row.keys() >= CONTRACT
        assert row["published_split"] is True
        assert (row["uauc"], row["auc_by_item"]["0-4"]) == (0.7, 0.6)
    assert [row["train_seconds"] for row in found] == [12.0, 1.0] * 2
    assert [row["speedup"] for row in found] == [None, 12.0] * 2


def test_seconds_that_others_disturbed_are_not_given(grid: Grid, tmp_path: Path) -> None:
    rows = rows_of(grid, workers=2)
    analyse.derive(grid, rows, tmp_path)
    assert {(row["train_seconds"], row["speedup"]) for row in flat.rows_of(grid, rows)} == {(None, None)}


def test_of_nothing_measured_there_is_no_file(grid: Grid, tmp_path: Path) -> None:
    flat.write(grid, [])
    flat.write(grid, [run.facts() | {"error": "no memory"} for run in grid.runs])
    assert not (tmp_path / "flat.json").exists()


def test_sizes_of_a_model_are_points_of_one_curve_a_paradigm(grid: Grid, tmp_path: Path) -> None:
    assert pictures.draw_all(grid, rows_of(grid, workers=2), tmp_path) == []  # no seconds alone, no picture
    assert pictures.draw_all(grid, rows_of(grid), tmp_path) == ["study_auc_models"]
    drawn = (tmp_path / "study_auc_models.svg").read_text()
    assert drawn.count("<!-- small -->") == drawn.count("<!-- large -->") == 2
    assert drawn.count("<!-- dti -->") == 1  # one line of the legend


def test_cold_items_stand_in_a_table_beside_uauc(grid: Grid) -> None:
    table = write.item_tables(grid, rows_of(grid), "quality").splitlines()
    assert table[:3] == ["**log**", "", "|  | UAUC | 0-4 | 5+ | 0 |"]
    assert table[4].startswith("| `sliding_window` | 0.7000 | 0.6000 | 0.8000 | 0.5000 |")


def test_shares_are_runs_of_their_own_each_held_against_its_own_sliding_window(grid: Grid) -> None:
    group = replace(grid.groups[0], data_sets=("log",), shares=(0.1, 1.0))
    few, many = (
        {run.paradigm: run for run in replace(grid, groups=(group,)).runs if run.facts()["share"] == share}
        for share in (0.1, None)
    )
    assert few["dti"].against == few["sliding_window"].digest != many["sliding_window"].digest
    assert many["dti"].digest == grid.runs[1].digest  # all targets are what silence means
    assert few["dti"].home == many["dti"].home


def test_a_share_of_the_targets_is_whole_users_the_nearest_and_part_of_a_larger_share() -> None:
    draw = np.random.default_rng(0)
    position = np.concatenate([np.arange(length) for length in draw.integers(1, 40, 200)]).astype(np.int32)
    targets = position >= 5
    user = np.cumsum(position == 0) - 1
    one, ten = (limits.share(targets, position, share, 7) for share in (0.01, 0.1))
    assert set(user[one]) < set(user[ten])
    for kept, share in ((one, 0.01), (ten, 0.1)):
        assert (kept == targets & np.isin(user, user[kept])).all()
        assert kept.sum() == pytest.approx(share * targets.sum(), abs=20)


def test_the_plan_of_the_table_has_every_model_and_paradigm_on_every_log() -> None:
    grid = grids.load(ROOT / "experiments" / "llm.yaml")
    logs = ("ml-1m", "ml-latest-small", "movietweetings-100k", "collm-ml1m")
    found = set()
    for run in grid.runs:
        data_set = grid.data_sets[run.data_set]
        if run.measure == "quality" and not run.model:
            found.add((data_set.log or run.data_set, data_set.model, run.paradigm, run.fixes))
    for log, model in itertools.product(logs, ("smollm2-135m", "gemma-3-270m", "scratch")):
        for paradigm in names():
            assert (log, model, paradigm, "") in found
        assert (log, model, "dti", "nope_alibi+linear") in found


def test_the_document_holds_the_committed_rows_and_every_group() -> None:
    grid = grids.load(ROOT / "experiments" / "llm.yaml")
    text = (ROOT / "docs" / "llm.md").read_text()
    assert write.document(grid, analyse.read(grid), text) == text
    shown = write.MARKED.finditer(text)
    of_groups = ("study", "delays", "validation")
    assert {match["name"] for match in shown if match["kind"] in of_groups} == set(grid.group_names)
