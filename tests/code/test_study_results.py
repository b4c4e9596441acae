"""docs/results.md holds the rows of benchmarks/results; the usual models beside the study see no answer."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import conventional
from benchmarks.lib import din
from benchmarks.lib.boosted import NAMES, features
from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.interactions import Interactions
from dti_pipeline.packing.store import TokenStore
from experiments import analyse, pictures, write
from experiments import grid as grids
from experiments.grid import DataSet, Grid, Group

ROOT = Path(__file__).resolve().parents[2]
#: Columns of study.json that other work reads.
CONTRACT = {
    "dataset", "split", "paradigm", "k", "n", "fixes", "epochs", "seed", "auc", "auc_streaming", "log_loss",
    "train_seconds", "targets_per_second", "hardware", "commit", "command",
}  # fmt: skip
USERS, LENGTH, ITEMS = 12, 15, 30
LAST = np.arange(LENGTH - 1, USERS * LENGTH, LENGTH)  # each user's last row, which is no other row's context


@pytest.mark.slow
def test_the_document_holds_the_committed_rows() -> None:
    grid = grids.load(ROOT / "experiments" / "study.yaml")
    text = (ROOT / "docs" / "results.md").read_text()
    assert write.document(grid, analyse.read(grid), text) == text


def test_the_readme_s_headline_is_in_the_documents() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## What was measured") :].partition("\n## ")[0]
    headline = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in section.splitlines()
        if "| at once |" in line or "| a day late |" in line
    ]
    assert len(headline) == 6
    for model, labels, *figures in headline:
        document = "llm" if model.startswith("SmolLM2") else "results"
        text = (ROOT / "docs" / f"{document}.md").read_text()
        _, _, log = model.partition(", ")
        tables = re.findall(rf"^\*\*{log}(?:-rates)?\*\*[^\n]*\n\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
        lines = [line for table in tables for line in table.splitlines() if line.startswith("| `dti_isolated`")]
        delays = [re.findall(r"\| (1 day|1 hour|10 minutes) \|", line) for line in lines]
        wanted = ["1 day"] if labels == "a day late" else []
        lines = [line for line, late in zip(lines, delays, strict=True) if late == wanted]
        assert any(all(f"| {figure} |" in line for figure in figures if figure.strip("–")) for line in lines), (
            model,
            labels,
        )


def test_the_document_shows_every_group() -> None:
    grid = grids.load(ROOT / "experiments" / "study.yaml")
    shown = re.findall(r"<!-- (?:study|delays): ([\w-]+) -->", (ROOT / "docs" / "results.md").read_text())
    assert sorted(shown) == sorted([*grid.group_names, *grid.others])


def test_of_delays_only_what_was_measured_stands_in_table_and_picture(tmp_path: Path) -> None:
    group = Group(name="late", data_sets=("log",), paradigms=("dti",), delays=(None, 3600.0))
    grid = Grid(data_sets={"log": DataSet()}, groups=(group,), figures={"auc_delay": ("late",)})
    at_once, late = grid.runs
    measured = {"workers": 1, "commit": "0123456789", "hardware": "A", "test_targets": 9, "test_users": 3}
    rows = [at_once.facts() | measured | {"auc": 0.75, "floors": {"item_rate": 0.7}}]
    table = write.delay_tables(grid, rows, "late").splitlines()
    assert table[2:] == [
        "|  | at once | 1 hour |", "| --- | ---: | ---: |",
        "| `dti` | 0.7500 | – |", "| floor: item rate | 0.7000 | – |",
    ]  # fmt: skip
    assert pictures.draw_all(grid, rows, tmp_path) == []  # one delay is no curve
    rows.append(late.facts() | measured | {"auc": 0.65, "floors": {"item_rate": 0.7}})
    assert pictures.draw_all(grid, rows, tmp_path) == ["study_auc_delay"]
    drawn = (tmp_path / "study_auc_delay.svg").read_text()
    assert "floor: item rate" in drawn
    assert "dti_isolated" not in drawn


@pytest.mark.slow
def test_the_committed_summary_is_of_the_committed_rows_and_both_are_small() -> None:
    grid = grids.load(ROOT / "experiments" / "study.yaml")
    results = grid.beside(grid.results)
    summary = json.loads((results / analyse.SUMMARY).read_text())
    assert summary == list(analyse.summary(analyse.read(grid)))
    for row in summary:
        assert row.keys() >= CONTRACT
        assert row["hardware"]
        assert row["commit"]
        assert row["command"]
    assert all(path.stat().st_size < 200_000 for path in results.iterdir())


def test_every_committed_row_says_where_it_comes_from() -> None:
    committed = analyse.read(grids.load(ROOT / "experiments" / "study.yaml"))
    assert committed
    for row in committed:
        assert row["command"].startswith(("dti study", "python benchmarks/", "python -m benchmarks."))
        assert "error" in row or (row["hardware"] and row["commit"] and "dirty" not in row["commit"] and row["data"])


@pytest.fixture
def log() -> tuple[Interactions, TokenStore]:
    """A small log: the last three rows of each user test, the others train; random items, titles and labels."""
    draw = np.random.default_rng(3)
    position = np.tile(np.arange(LENGTH), USERS)
    item = draw.integers(0, ITEMS, USERS * LENGTH)
    label = draw.integers(0, 2, USERS * LENGTH).astype(np.int8)
    train = (position >= 3) & (position < LENGTH - 3)
    offsets = np.arange(0, 3 * ITEMS + 1, 3, dtype=np.int64)
    tokens = draw.integers(4, 40, 3 * ITEMS).astype(np.int32)
    split = np.where(position < LENGTH - 3, 0, 2).astype(np.int8)
    places = [position.astype(np.int32)] * 3
    store = TokenStore(tokens, offsets, item.astype(np.int32), label, split, *places, tokens[:0], {})
    user = np.repeat(np.arange(USERS), LENGTH)
    return Interactions(user, item, label, position, position, position, train, pa.table({})), store


def flipped(log: Interactions, at: np.ndarray) -> Interactions:
    label = log.label.copy()
    label[at] = 1 - label[at]
    return replace(log, label=label)


def trained(log: Interactions, user: int, label: int) -> list[int]:
    """Some training targets of a user, of that label."""
    found = np.flatnonzero(log.train & (log.user == user) & (log.label == label))[:3].tolist()
    assert found
    return found


def test_no_counted_feature_of_a_target_knows_its_label(log: tuple[Interactions, TokenStore]) -> None:
    before = features(*log, 5)
    assert before.shape == (USERS * LENGTH, len(NAMES))
    # Users 0 and 10 are of one fold. Two labels at once, so that the overall rate stays.
    for a, b in itertools.product(trained(log[0], 0, 1), trained(log[0], 10, 0)):
        after = features(flipped(log[0], np.array([a, b])), log[1], 5)
        np.testing.assert_array_equal(after[[a, b]], before[[a, b]])
        assert (after != before).any()
    np.testing.assert_array_equal(features(flipped(log[0], LAST), log[1], 5), before)


def test_the_interest_network_does_not_see_the_label_it_predicts(log: tuple[Interactions, TokenStore]) -> None:
    held = np.flatnonzero(log[1].split == 2)
    targets = {"train": np.flatnonzero(log[0].train), "validation": held, "test": held}
    settings = din.Settings(epochs=1, batch=32)
    scores = [din.fit(one, log[1], targets, 5, 1, settings).probability for one in (log[0], flipped(log[0], LAST))]
    np.testing.assert_array_equal(*scores)
    earlier = din.fit(flipped(log[0], LAST - 1), log[1], targets, 5, 1, settings).probability
    assert (earlier != scores[0]).any()  # it does read the labels before
    ended = din.fit(log[0], log[1], targets, 5, 1, din.Settings(epochs=8, batch=32))
    assert ended.passes == min(8, ended.kept + 2)  # two epochs that are no better end it, and take time


@pytest.mark.slow
def test_a_usual_model_of_other_data_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = grids.load(ROOT / "experiments" / "study.yaml")
    monkeypatch.setattr(conventional.logs, "digest", lambda home: "now")
    with pytest.raises(InputError, match="run `dti ingest` first"):  # it is not there: it would be made
        conventional.run(grid, tmp_path, "ml-1m", "gbdt", 1, 20)
    sought = {"dataset": "ml-1m", "paradigm": "gbdt", "n": 20}
    config = next(row["config"] for row in analyse.read(grid) if sought.items() <= row.items())
    kept = tmp_path / "ml-1m" / "runs" / config / conventional.ROW
    artifacts.write_json(kept, {"data": "now", "auc": 0.5})
    assert conventional.run(grid, tmp_path, "ml-1m", "gbdt", 1, 20)["auc"] == 0.5
    artifacts.write_json(kept, {"data": "before", "auc": 0.5})
    with pytest.raises(InputError, match="run `dti ingest` first"):
        conventional.run(grid, tmp_path, "ml-1m", "gbdt", 1, 20)
