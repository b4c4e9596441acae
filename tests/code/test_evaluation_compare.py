"""From published scores to the comparison: the contract of its JSON, its refusals, its words and its page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline import artifacts
from dti_pipeline import config as configuration
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import tables
from dti_pipeline.evaluation.compare import compare
from dti_pipeline.evaluation.evaluate import measure
from dti_pipeline.evaluation.report import Evaluation
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from tests.code.evaluated_homes import (
    CONFIG,
    USERS,
    evaluated,
    predictions,
    project_at,
    write_events,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def project(home: Paths) -> Paths:
    return project_at(home)


def test_an_evaluation_holds_every_score_and_every_figure(project: Paths) -> None:
    report = evaluated(project, "dti")
    folder = project.evaluation("dti")
    manifest = artifacts.read(folder, "evaluate", Evaluation)
    assert manifest.files == {name: artifacts.file_digest(folder / name) for name in manifest.files}
    assert manifest.report == report
    assert json.loads((folder / "metrics.json").read_text()) == to_plain(report)
    assert set(manifest.inputs) == {"events", "tokens", "shards", "model"}
    scores = pq.read_table(folder / "predictions.parquet")
    assert scores.column_names == [
        "row", "user_id", "item_id", "position", "label", "probability", "probability_streaming",
    ]  # fmt: skip
    log = pq.read_table(project.events / "interactions.parquet").take(scores["row"])
    assert all(scores[c].to_pylist() == log[c].to_pylist() for c in ("user_id", "item_id", "position", "label"))
    assert report.targets == len(scores) == USERS * 3
    low, high = report.forms.sliding_window.auc_interval
    assert low < report.auc < high
    assert sum(s.count for s in report.slices.item_popularity) == USERS * 3
    assert (folder / "learning_curve.csv").read_text().splitlines() == [
        "train_seconds,targets_seen,val_auc", "10,1000,0.66", "20,2000,0.72",
    ]  # fmt: skip
    for name in ("roc", "calibration", "auc_time"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text()


def test_the_same_scores_are_the_same_bytes(project: Paths) -> None:
    evaluated(project, "dti")
    compare(CONFIG, project)
    folders = [project.evaluation("dti"), project.comparison]
    before = [artifacts.folder_digest(folder) for folder in folders]
    files = [project.comparison_file(s).read_bytes() for s in ("json", "md", "html")]
    evaluated(project, "dti")
    compare(CONFIG, project)
    assert [artifacts.folder_digest(folder) for folder in folders] == before
    assert [project.comparison_file(s).read_bytes() for s in ("json", "md", "html")] == files


def with_label_flipped(table: pa.Table) -> pa.Table:
    return table.set_column(1, "label", pa.array(1 - table["label"].to_numpy()))


def with_a_nan(table: pa.Table) -> pa.Table:
    values = table["probability"].to_numpy().copy()
    values[3] = np.nan
    return table.set_column(2, "probability", pa.array(values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_label_flipped, "made from other events"),
        (with_a_nan, "no probability"),
        (lambda t: t.slice(0, 0), "no target"),
        (lambda t: pa.concat_tables([t, t]), "one line for each target"),
    ],
)
def test_scores_that_cannot_be_measured_are_refused(project: Paths, spoil: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(CONFIG, project, "dti", spoil(predictions(project, 0.5)), {})
    assert not project.evaluation("dti").exists()


def test_comparison_json_keeps_its_contract(project: Paths) -> None:
    evaluated(project, "sliding_window", seed=1)
    evaluated(project, "dti", seed=2)
    evaluated(project, "dti_isolated", noise=8.0)
    returned = compare(CONFIG, project)
    found = json.loads(project.comparison_file("json").read_text())
    assert found == to_plain(returned)
    assert found.keys() >= {
        "dataset", "commit", "hardware", "protocol", "paradigms", "baselines", "speedup", "auc_delta", "verdict",
    }  # fmt: skip
    assert list(found["paradigms"]) == ["dti", "dti_isolated", "sliding_window"]
    for row in found["paradigms"].values():
        for key in (
            "auc", "auc_streaming", "log_loss", "gauc", "ne", "f1", "train_seconds", "targets_per_second",
            "tokens_per_second", "targets", "epochs", "seed",
        ):  # fmt: skip
            assert isinstance(row[key], (int, float)), key
        assert "mlflow_run_id" in row
    assert set(found["baselines"]) == {"item_rate", "item_and_user_rate", "item_and_user_rate_all_rows"}
    assert found["speedup"] == {"dti": pytest.approx(10.0), "dti_isolated": pytest.approx(10.0)}
    assert found["speed"]["dti"] == {
        "clock": pytest.approx(10.0), "processor": pytest.approx(10.0), "tokens": pytest.approx(12.0),
        "undisturbed": True,
    }  # fmt: skip
    assert set(found["auc_delta"]) == {"dti", "dti_isolated"}
    for name, delta in found["auc_delta"].items():
        assert set(delta) == {"mean", "ci_low", "ci_high"}
        expected = found["paradigms"][name]["auc"] - found["paradigms"]["sliding_window"]["auc"]
        assert delta["mean"] == pytest.approx(expected)
        assert delta["ci_low"] < delta["mean"] < delta["ci_high"]
    assert set(found["verdict"]) == set(found["paradigms"])


def test_the_best_possible_is_that_of_the_truth_on_the_same_targets(project: Paths) -> None:
    exact = evaluated(project, "dti", noise=0.0)
    found = compare(CONFIG, project)
    assert found.best_possible_auc == pytest.approx(exact.auc, abs=1e-4)  # the truth clipped for its logit
    path = project.synthetic / "truth.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    found = compare(CONFIG, project)
    assert found.best_possible_auc is None
    assert any("best possible is left out" in note for note in found.notes)


def test_nothing_to_compare_is_refused(project: Paths) -> None:
    with pytest.raises(InputError, match="run `dti evaluate` first"):
        compare(CONFIG, project)


def test_an_evaluation_of_other_events_is_left_out_and_named(project: Paths) -> None:
    evaluated(project, "sliding_window")
    write_events(project, CONFIG, seed=5)
    evaluated(project, "dti")
    found = compare(CONFIG, project)
    assert list(found.paradigms) == ["dti"]
    assert any(note.startswith("sliding_window is left out") for note in found.notes)
    write_events(project, CONFIG, seed=6)
    with pytest.raises(InputError, match="sliding_window, dti: evaluated on other events"):
        compare(CONFIG, project)


def test_different_targets_are_refused_by_name(project: Paths) -> None:
    evaluated(project, "sliding_window")
    other = configuration.load(Path("no such file"), ["evaluation.split=validation"])
    evaluated(project, "dti", config=other, split="validation")
    with pytest.raises(InputError, match="sliding_window and dti were evaluated on different targets"):
        compare(CONFIG, project)


def test_tables_fit_and_show_every_row(project: Paths) -> None:
    for seed, paradigm in enumerate(names()):
        evaluated(project, paradigm, seed=seed)
    found = compare(CONFIG, project)
    text = tables.render_text(found)
    assert max(len(line) for line in text.splitlines()) <= 110
    markdown = project.comparison_file("md").read_text()
    for name in (*names(), "item rate", "best possible"):
        assert name in text
        assert name in markdown
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", markdown):
        assert (project.reports / picture).is_file()
    header, *lines = (project.comparison / "roc.csv").read_text().splitlines()
    assert header == "paradigm,fpr,tpr"
    assert len(lines) <= 4 * 200
    assert {line.split(",")[0] for line in lines} == set(names())


def test_the_page_needs_nothing_else(project: Paths) -> None:
    evaluated(project, "sliding_window")
    evaluated(project, "dti", seed=2)
    compare(CONFIG, project)
    page = project.comparison_file("html").read_text()
    assert not re.search(r"https?:|url\(|@import|<link|<script|href=", page)
    assert set(re.findall(r'src="(.{11})', page)) == {"data:image/"}
    assert page.count("<img") == 4
    assert "above all 3 floors" in page


def test_words_from_the_log_cannot_become_markup(project: Paths) -> None:
    config = configuration.load(
        Path("no such file"), ["evaluation.bootstrap_samples=20", "events.path=data/<b>log", "events.source=table"]
    )
    write_events(project, config, seed=0)
    evaluated(project, "dti", config=config)
    found = compare(config, project)
    assert found.dataset == "<b>log"
    assert found.best_possible is None
    assert "<b>" not in project.comparison_file("html").read_text()
