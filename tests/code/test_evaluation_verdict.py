"""What the verdict of a comparison says and claims, and what the notes point out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline import artifacts
from dti_pipeline.evaluation import tables, verdict
from dti_pipeline.evaluation.compare import compare
from dti_pipeline.evaluation.report import Delta, Speed
from dti_pipeline.paths import Paths
from tests import reports
from tests.code.evaluated_homes import (
    CONFIG,
    evaluated,
    project_at,
    write_model,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def project(home: Paths) -> Paths:
    return project_at(home)


def test_the_verdict_says_what_the_figures_say(project: Paths) -> None:
    evaluated(project, "sliding_window", seed=1)
    evaluated(project, "dti", seed=2)
    evaluated(project, "dti_isolated", noise=8.0)
    found = compare(CONFIG, project)
    assert "no measurable difference" in found.verdict["dti"]
    assert (
        "10.0x less training time per target (10.0x by processor seconds, 10.0x by the clock; at most the ratio of"
        " tokens, 12.0x)"
    ) in found.verdict["dti"]
    assert found.verdict["dti"].endswith("above all 3 floors.")
    assert ", worse; " in found.verdict["dti_isolated"]
    assert re.search(
        r"above (none|1|2) of the 3 floors: (below|no measurable difference from) item",
        found.verdict["dti_isolated"],
    )


@pytest.mark.parametrize(
    ("seconds", "share", "baseline", "words"),
    [
        (
            150.0,
            0.75,
            0.69,
            "75 % of its training and has validation AUC 0.6900, where this one has 0.7200",
        ),
        (20.0, 0.1, None, "10 % of its training and is not judged so early, where this one has 0.7200"),
        (400.0, None, None, None),
    ],
)
def test_the_verdict_says_what_the_time_saved_buys(
    project: Paths, seconds: float, share: float | None, baseline: float | None, words: str | None
) -> None:
    """The baseline is judged after half of its targets and all, and has 0.66 and 0.72."""
    write_model(project, "dti", seconds=seconds)
    for paradigm in ("sliding_window", "dti"):
        evaluated(project, paradigm)
    found = compare(CONFIG, project)
    if share is None or words is None:
        assert not found.same_time
        assert "in as much time" not in found.verdict["dti"]
        return
    assert found.same_time["dti"].share == pytest.approx(share)
    assert found.same_time["dti"].baseline == pytest.approx(baseline)
    assert f"in as much time sliding_window gets through {words}" in found.verdict["dti"]
    assert any("a shorter one that ends there" in note for note in found.notes) == (baseline is not None)


#: The baseline took 200 seconds and processor seconds, for twelve times the tokens.
@pytest.mark.parametrize(
    ("changed", "claimed", "undisturbed"),
    [
        ({"train_seconds": 20.0, "processor_seconds": 22.0}, 200 / 22, True),
        ({"train_seconds": 22.0, "processor_seconds": 20.0}, 200 / 20, True),
        ({"train_seconds": 60.0, "processor_seconds": 20.0}, 10.0, False),  # others had two thirds of its processor
        ({"train_seconds": 20.0, "processor_seconds": 35.0}, 200 / 35, True),  # two threads, where the other had one
        ({"train_seconds": 10.0, "processor_seconds": 10.0}, 12.0, True),
        ({"train_seconds": 16.0, "processor_seconds": 2.0, "device": "cuda"}, 12.0, True),
        ({"train_seconds": 25.0, "processor_seconds": 2.0, "device": "cuda"}, 8.0, True),
    ],
)
def test_no_speed_up_is_claimed_that_other_work_or_fewer_tokens_do_not_explain(
    project: Paths, changed: dict[str, Any], claimed: float, undisturbed: bool
) -> None:
    write_model(project, "dti", **({"seconds": 20.0} | changed))
    for paradigm in ("sliding_window", "dti"):
        evaluated(project, paradigm)
    found = compare(CONFIG, project)
    assert found.speedup["dti"] == pytest.approx(claimed)
    assert found.speed["dti"].undisturbed == undisturbed
    assert any("by the clock are not compared" in " ".join(note.split()) for note in found.notes) != undisturbed
    on_cpu = "device" not in changed
    for text in (project.comparison_file("md").read_text(), tables.render_text(found)):
        page = " ".join(text.split())
        assert "at most the ratio of tokens, 12.0x" in page
        assert ("x by processor seconds" in page) == on_cpu
        assert ("x by the clock;" in page) == (on_cpu and undisturbed)
    shown = json.loads((project.comparison / "metrics" / "dti.json").read_text())
    assert shown["speedup"] == pytest.approx(claimed)
    assert ("speedup_processor" in shown) == on_cpu
    assert ("speedup_clock" in shown) == undisturbed


def test_without_the_baseline_there_is_no_speedup_and_the_note_says_why(project: Paths) -> None:
    evaluated(project, "dti")
    found = compare(CONFIG, project)
    assert found.speedup == found.auc_delta == {}
    assert any("sliding_window has no evaluation" in note for note in found.notes)
    assert "less training time" not in found.verdict["dti"]
    assert not (project.comparison / "speedup.png").exists()
    assert (project.comparison / "roc.png").is_file()


def test_one_class_of_evaluated_targets_gives_null_and_words(project: Paths) -> None:
    log = pq.read_table(project.events / "interactions.parquet")
    label = np.where(np.array(log["split"].to_pylist()) == "test", 1, log["label"].to_numpy()).astype(np.int8)
    with artifacts.publish(project.events, "ingest", CONFIG.sections("events", "split")) as draft:
        at = log.column_names.index("label")
        pq.write_table(log.set_column(at, "label", pa.array(label)), draft.path / "interactions.parquet")
    for paradigm in ("sliding_window", "dti"):
        evaluated(project, paradigm)
    found = compare(CONFIG, project)
    assert found.paradigms["dti"].auc is None
    assert found.auc_delta["dti"] == Delta(None, None, None)
    assert "not defined" in found.verdict["dti"]
    assert "NaN" not in project.comparison_file("json").read_text()
    tables.render_text(found)


def test_unequal_trainings_are_pointed_out(project: Paths) -> None:
    write_model(project, "dti", seconds=20.0, hardware="a GPU", targets=4000, steps=10)
    evaluated(project, "sliding_window")
    evaluated(project, "dti")
    notes = " ".join(compare(CONFIG, project).notes)
    assert "different hardware" in notes
    assert "different numbers of training targets" in notes
    assert "different numbers of optimizer steps, so AUC compares recipes too: sliding_window 40, dti 10" in notes


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.001, 0.005, "better"), (-0.005, -0.001, "worse"), (-0.001, 0.002, "no measurable difference;"),
     (-0.03, 0.04, "cannot see differences below about 0.035)")],
)  # fmt: skip
def test_a_verdict_claims_no_more_than_its_interval(low: float, high: float, words: str) -> None:
    comparison = replace(
        reports.COMPARISON,
        paradigms={n: replace(reports.COMPARED, auc=auc) for n, auc in (("sliding_window", 0.7), ("dti", 0.702))},
        auc_delta={"dti": Delta(0.002, low, high)},
        speedup={"dti": 0.5},
        speed={"dti": Speed(0.5, 0.5, 6.0, True)},
        baselines={"item_rate": 0.65},
        floor_delta={"dti": {"item_rate": Delta(-0.1, -0.2, -0.01)}},
    )
    text = verdict.sentence("dti", comparison)
    assert words in text
    assert "2.0x more training time per target" in text
    assert text.endswith("above none of the 1 floors: below item rate 0.6500.")
