"""From published scores to the comparison: the contract of its JSON, its refusals, its words and its page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline import artifacts
from dti_pipeline import config as configuration
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import tables, verdict
from dti_pipeline.evaluation.compare import compare
from dti_pipeline.evaluation.evaluate import measure
from dti_pipeline.evaluation.report import Delta, Evaluation, Speed
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from tests import reports

pytestmark = pytest.mark.slow

USERS, EACH, MIN_HISTORY = 120, 30, 5
CONFIG = configuration.load(Path("no such file"), ["evaluation.bootstrap_samples=100"])


@pytest.fixture
def project(home: Paths) -> Paths:
    """A home with events, and the manifests of everything that stands between them and an evaluation."""
    write_events(home, CONFIG, seed=0)
    for paradigm in names():
        k = 1 if paradigm == "sliding_window" else 50
        with artifacts.publish(home.shards(paradigm), "pack", CONFIG.sections("packing", "split")) as draft:
            draft.report = replace(reports.PACK, paradigm=paradigm, targets_per_prompt=k)
        if k == 1:
            write_model(home, paradigm, seconds=200.0, tokens=1_080_000)
        else:
            write_model(home, paradigm, seconds=20.0)
    with artifacts.publish(home.tokens, "tokenize"):
        pass
    return home


def write_events(paths: Paths, config: Config, seed: int) -> None:
    """A log whose probabilities are known, in the form that ingestion publishes, with the truth beside it."""
    generator = np.random.default_rng(seed)
    user, position = np.repeat(np.arange(USERS), EACH), np.tile(np.arange(EACH), USERS)
    item = generator.integers(0, 40, len(user))
    logit = generator.normal(0, 1, USERS)[user] + generator.normal(0, 1, 40)[item] + generator.normal(0, 3, len(user))
    probability = 1 / (1 + np.exp(-logit))
    log = pa.table(
        {
            "user_id": [str(u) for u in user],
            "item_id": [str(i) for i in item],
            "timestamp": 1_600_000_000 + position * 100_000 + user,
            "label": (generator.random(len(user)) < probability).astype(np.int8),
            "split": np.where(position < 24, "train", np.where(position < 27, "validation", "test")),
            **dict.fromkeys(("position", "request", "known"), position.astype(np.int32)),
        }
    )
    with artifacts.publish(paths.events, "ingest", config.sections("events", "split")) as draft:
        pq.write_table(log, draft.path / "interactions.parquet")
    paths.synthetic.mkdir(parents=True, exist_ok=True)
    lines = zip(*(log[c].to_pylist() for c in ("user_id", "item_id", "timestamp")), probability, strict=True)
    text = "user_id,item_id,timestamp,probability\n" + "".join(f"{u},{i},{t},{p:.6f}\n" for u, i, t, p in lines)
    (paths.synthetic / "truth.csv").write_text(text)


def write_model(paths: Paths, paradigm: str, seconds: float, **changed: Any) -> None:
    with artifacts.publish(paths.model(paradigm), "train") as draft:
        times = {"train_seconds": seconds, "processor_seconds": seconds}
        draft.report = replace(reports.TRAIN, paradigm=paradigm, **(times | changed))
        (draft.path / "history.csv").write_text(
            "targets_seen,train_seconds,step,loss,learning_rate,val_auc,val_log_loss\n"
            f"500,{seconds / 4},10,0.7,0.001,,\n"
            f"1000,{seconds / 2},20,0.65,0.001,0.66,0.63\n"
            f"2000,{seconds},40,0.6,0.0001,0.72,0.61\n"
        )


def predictions(paths: Paths, noise: float, seed: int = 1, split: str = "test") -> pa.Table:
    """Scores of the split's targets: the truth with noise on its logit."""
    log = pq.read_table(paths.events / "interactions.parquet")
    rows = np.flatnonzero(np.array(log["split"].to_pylist()) == split)
    lines = (paths.synthetic / "truth.csv").read_text().splitlines()[1:]
    truth = np.array([float(line.split(",")[3]) for line in lines])[rows].clip(0.001, 0.999)
    generator = np.random.default_rng(seed)
    logit = np.log(truth / (1 - truth))
    served, streaming = (1 / (1 + np.exp(-logit - generator.normal(0, noise, len(rows)))) for _ in range(2))
    return pa.table(
        {
            "row": rows,
            "label": log["label"].take(rows),
            "probability": served,
            "probability_streaming": streaming,
        }
    )


def evaluated(paths: Paths, paradigm: str, noise: float = 0.5, config: Config = CONFIG, **more: Any) -> Evaluation:
    return measure(config, paths, paradigm, predictions(paths, noise, **more), {"seconds_sliding_window": 1.0})


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


def test_the_best_possible_is_that_of_the_truth_on_the_same_targets(project: Paths) -> None:
    exact = evaluated(project, "dti", noise=0.0)
    found = compare(CONFIG, project)
    assert found.best_possible_auc == pytest.approx(exact.auc, abs=1e-4)  # the truth clipped for its logit
    path = project.synthetic / "truth.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    found = compare(CONFIG, project)
    assert found.best_possible_auc is None
    assert any("best possible is left out" in note for note in found.notes)


def test_without_the_baseline_there_is_no_speedup_and_the_note_says_why(project: Paths) -> None:
    evaluated(project, "dti")
    found = compare(CONFIG, project)
    assert found.speedup == found.auc_delta == {}
    assert any("sliding_window has no evaluation" in note for note in found.notes)
    assert "less training time" not in found.verdict["dti"]
    assert not (project.comparison / "speedup.png").exists()
    assert (project.comparison / "roc.png").is_file()


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
