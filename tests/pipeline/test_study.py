"""`dti study` on a small log: run, stopped, resumed, failed, paired, reported."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from typer.testing import CliRunner

from dti_pipeline import config, tracking
from dti_pipeline.cli import app
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from experiments import analyse, command, schedule, write
from experiments import grid as grids
from experiments.grid import Grid
from experiments.logs import prepare
from experiments.run import ROW, execute, folder
from tests.project import TINY

CONTRACT = {
    "dataset", "split", "paradigm", "k", "n", "fixes", "epochs", "seed", "auc", "auc_streaming", "log_loss", "gauc",
    "train_seconds", "targets_per_second", "tokens_per_second", "tokens", "speedup", "auc_difference", "floors",
    "hardware", "commit", "command", "config",
}  # fmt: skip
STUDY: dict[str, Any] = {
    "results": ".",
    "document": "results.md",
    "pictures": "img",
    "data_sets": {"demo": {"note": "made here", "params": {"events": {"source": "synthetic"}, **TINY}}},
    "groups": [{"name": "main", "data_sets": ["demo"], "paradigms": ["sliding_window", "dti"], "n": [5], "k": [10]}],
    "figures": {"leak_k": ["main"], "speedup_k": ["main"]},
}
DOCUMENT = """# Results

<!-- study: main -->
<!-- end -->

<!-- histories: main -->
<!-- end -->

<!-- figure: leak_k -->
<!-- end -->

<!-- figure: auc_n -->
<!-- end -->

What we learned.
"""


def study(home: Path, **training: Any) -> Grid:
    """The small study, written into a folder with a document that asks for its table."""
    content = json.loads(json.dumps(STUDY))
    content["data_sets"]["demo"]["params"]["training"] |= training
    home.mkdir(parents=True, exist_ok=True)
    (home / "study.yaml").write_text(yaml.safe_dump(content))
    (home / "results.md").write_text(DOCUMENT)
    return grids.load(home / "study.yaml")


def rows_of(home: Path) -> list[analyse.Row]:
    """The rows of the results in the study's folder."""
    return analyse.read(grids.load(home / "study.yaml"))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder in which the log is prepared and nothing was run."""
    work = tmp_path_factory.mktemp("logs")
    grid = study(work / "file")
    schedule.prepare(grid, work / "study", grid.runs, {}, Paths(work))
    return work / "study"


@pytest.fixture(scope="module")
def finished(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole study, two runs at a time, with its report."""
    home = tmp_path_factory.mktemp("finished")
    shutil.copytree(logs, home / "study", symlinks=True)
    study(home)
    task = command.Task(home / "study.yaml", home / "study", workers=2)
    untracked = config.load(Path("none"), ["tracking.enabled=false"])
    report = command.make(task, untracked, Paths(home), None, lambda text: None)
    assert report == {
        "results": ".", "rows": 2, "errors": 0, "missing": 0, "failed": 0, "pictures": ["study_leak_k"],
    }, rows_of(home)  # fmt: skip
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished study, to change."""
    return shutil.copytree(finished, tmp_path / "home", symlinks=True)


@pytest.mark.slow
def test_rows_say_what_was_run_and_what_came_of_it(finished: Path) -> None:
    base, dti = rows_of(finished)
    assert (base["paradigm"], base["k"], dti["paradigm"], dti["k"]) == ("sliding_window", 1, "dti", 10)
    for row in (base, dti):
        assert set(row) >= CONTRACT
        assert row["workers"] == 2
        assert row["speedup"] is None  # two at a time: seconds say nothing
        assert row["floors"].keys() == {"item_rate", "item_and_user_rate", "item_and_user_rate_all_rows"}
        assert row["tokens"] == pytest.approx(row["tokens_per_target"] * row["targets"], rel=0.2)
    difference = dti["auc_difference"]
    assert difference["against"] == base["config"]
    assert difference["mean"] == pytest.approx(dti["auc"] - base["auc"], abs=1e-5)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert dti["fewer_tokens"] == pytest.approx(base["tokens_per_target"] / dti["tokens_per_target"], abs=1e-3)
    assert not list(finished.glob("study/demo/runs/*/home"))


@pytest.mark.slow
def test_what_is_done_is_not_done_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule.subprocess, "Popen", None)
    before = (home / analyse.ROWS).read_bytes()
    shutil.rmtree(home / "study" / "demo" / "runs")  # the results file alone is enough
    grid = grids.load(home / "study.yaml")
    assert schedule.execute(grid, home / "study", grid.runs) == 0
    assert (home / analyse.ROWS).read_bytes() == before


@pytest.mark.slow
def test_another_configuration_is_another_run_and_never_takes_the_others_place(home: Path) -> None:
    grid = study(home, learning_rate=0.5)
    assert [row["state"] for row in schedule.listing(grid, home / "study", grid.runs)] == ["to do", "to do"]
    assert analyse.gather(grid, home / "study") == []
    grid = study(home)
    assert [row["state"] for row in schedule.listing(grid, home / "study", grid.runs)] == ["done", "done"]


@pytest.mark.slow
def test_what_a_process_of_an_earlier_call_has_just_finished_stands(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = grids.load(home / "study.yaml")
    run, own = grid.runs[1], folder(home / "study", grid.runs[1])
    before = (own / ROW).read_bytes()
    gather, looks = analyse.gather, iter([lambda *given: []])  # at the first look there was no row

    def look(*given: Any) -> list[analyse.Row]:
        return next(looks, gather)(*given)

    monkeypatch.setattr(analyse, "gather", look)
    assert schedule.execute(grid, home / "study", [run]) == 0
    assert (own / ROW).read_bytes() == before


@pytest.mark.slow
def test_a_row_is_called_what_the_grid_calls_it_today(home: Path) -> None:
    content = yaml.safe_load((home / "study.yaml").read_text())
    content["groups"][0]["name"] = "other"
    content["figures"] = {}
    (home / "study.yaml").write_text(yaml.safe_dump(content))
    grid = grids.load(home / "study.yaml")
    assert {row["group"] for row in analyse.gather(grid, home / "study")} == {"other"}
    assert analyse.of_group(grid, analyse.read(grid), "main") == []


@pytest.mark.slow
def test_an_interval_that_could_not_be_made_is_made_once_the_predictions_are_there(home: Path) -> None:
    grid, work = grids.load(home / "study.yaml"), home / "study"
    gathered = analyse.gather(grid, work)
    expected = gathered[1]["auc_difference"]
    gathered[1]["auc_difference"] = None
    away = (work / "demo" / "runs").rename(work / "demo" / "away")
    analyse.derive(grid, gathered, work)
    assert gathered[1]["auc_difference"] == expected | {"low": None, "high": None}
    away.rename(work / "demo" / "runs")
    analyse.derive(grid, gathered, work)
    assert gathered[1]["auc_difference"] == expected


@pytest.mark.slow
def test_rows_of_other_data_are_refused(home: Path) -> None:
    grid = grids.load(home / "study.yaml")
    content = rows_of(home)
    for row in content:
        row["data"] = "0123456789ab"
    analyse.save(grid, content)
    with pytest.raises(
        InputError, match=r"study_rows\.jsonl\.xz holds rows of demo that come from other data \(0123456789ab\)"
    ):
        schedule.prepare(grid, home / "study", grid.runs, {}, Paths(home))
    content[0]["data"] = "ba9876543210"
    analyse.save(grid, content)
    with pytest.raises(InputError, match="rows of demo come from different data"):
        analyse.gather(grid, home / "study")


@pytest.mark.slow
def test_told_to_stop_it_saves_leaves_no_process_and_goes_on_to_the_same_figures(logs: Path, tmp_path: Path) -> None:
    grid = study(tmp_path, epochs=1.0, targets_per_step=32, checkpoint_seconds=0)  # steps enough to be stopped among
    run = next(run for run in grid.runs if run.paradigm == "dti")
    work, alone = (shutil.copytree(logs, tmp_path / name, symlinks=True) for name in ("study", "alone"))
    expected = execute(run, alone)
    content = yaml.safe_load((tmp_path / "study.yaml").read_text())
    content["groups"][0]["paradigms"] = ["dti"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))

    words = [sys.executable, "-m", "dti_pipeline.cli", "study", str(tmp_path / "study.yaml"), "--no-report"]
    words += ["--workers", "2"]
    command = subprocess.Popen(words, env=os.environ | {"DTI_HOME": str(tmp_path)}, stderr=subprocess.DEVNULL)
    checkpoints = folder(work, run) / "home" / "models" / ".checkpoints"
    until = time.monotonic() + 300
    while not list(checkpoints.glob("*/*/step-*")) and time.monotonic() < until:
        time.sleep(0.01)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 130
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"{work} {run.digest}" not in running
    assert list(checkpoints.glob("*/*/step-*"))
    assert not rows_of(tmp_path)

    said: list[str] = []
    assert schedule.execute(grid, work, [run], budget=1e-9, say=said.append) == 0
    assert said == ["1 runs are left: the same command goes on with them"]
    assert schedule.execute(grid, work, [run], say=said.append) == 0
    (row,) = rows_of(tmp_path)
    figures = ("auc", "auc_streaming", "log_loss", "loss", "targets", "steps")
    assert {key: row[key] for key in figures} == {key: expected[key] for key in figures}
    assert (expected["workers"], row["workers"]) == (1, 2)  # a part of it did not have the machine to itself


def test_the_row_of_a_run_that_was_killed_says_by_what(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, work = study(tmp_path), shutil.copytree(logs, tmp_path / "study", symlinks=True)
    begin = subprocess.Popen
    words = ["sh", "-c", "echo step 7; kill -KILL $$"]
    monkeypatch.setattr(schedule.subprocess, "Popen", lambda given, **options: begin(words, **options))
    assert schedule.execute(grid, work, grid.runs[:1], say=lambda text: None) == 1
    (row,) = rows_of(tmp_path)
    assert row["error"] == "killed by SIGKILL: step 7"


@pytest.mark.slow
def test_a_run_that_fails_has_a_row_with_its_error_and_is_tried_again(logs: Path, tmp_path: Path) -> None:
    grid, work = study(tmp_path), shutil.copytree(logs, tmp_path / "study", symlinks=True)
    run = next(run for run in grid.runs if run.paradigm == "dti")
    (work / "demo" / "packed").write_text("in the way")
    said: list[str] = []
    assert schedule.execute(grid, work, [run], say=said.append) == 1
    (row,) = rows_of(tmp_path)
    assert row["error"] in said[0]
    assert "packed" in row["error"]
    assert row["paradigm"] == "dti"
    assert next(schedule.listing(grid, work, [run]))["state"] == "failed"
    (work / "demo" / "packed").unlink()
    assert schedule.execute(grid, work, [run], say=said.append) == 0
    (row,) = rows_of(tmp_path)
    assert "error" not in row
    assert row["auc"] > 0


@pytest.mark.slow
def test_the_report_is_made_from_the_rows_and_making_it_again_changes_nothing(home: Path) -> None:
    def files() -> dict[str, bytes]:
        found = [home / analyse.ROWS, home / "study.json", home / "results.md", *(home / "img").iterdir()]
        return {path.name: path.read_bytes() for path in found}

    before = files()
    assert "study_leak_k.svg" in before
    assert "study_leak_k.png" in before
    text = before["results.md"].decode()
    row = rows_of(home)[1]
    assert text.startswith("# Results\n")
    assert text.endswith("What we learned.\n")
    assert "**demo** (made here)" in text
    assert f"| `dti` | {row['auc']:.4f} | {row['auc_streaming']:.4f} |" in text
    assert "](img/study_leak_k.svg)" in text
    assert text.count("Not drawn yet.") == 1
    by_history = sorted(row["auc_by_history"].items(), key=lambda one: int(one[0].partition("-")[0]))
    assert len(by_history) > 1
    assert f"| `dti` | {' | '.join(f'{auc:.4f}' if auc is not None else '–' for _, auc in by_history)} |" in text
    shutil.rmtree(home / "study")  # a clone has the results file alone
    untracked = config.load(Path("none"), ["tracking.enabled=false"])
    write.report(grids.load(home / "study.yaml"), home / "study", untracked, Paths(home))
    assert files() == before


@pytest.mark.slow
@pytest.mark.parametrize(("marker", "near"), [("study: mian", "main"), ("figure: leak", "leak_k")])
def test_a_marker_that_asks_for_nothing_of_the_study_is_an_error(home: Path, marker: str, near: str) -> None:
    grid = grids.load(home / "study.yaml")
    with pytest.raises(InputError, match=f"did you mean `{near}`"):
        write.document(grid, analyse.read(grid), f"<!-- {marker} -->\n<!-- end -->\n")


@pytest.mark.slow
def test_the_command_lists_what_is_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTI_HOME", str(home))
    content = yaml.safe_load((home / "study.yaml").read_text())
    content["groups"].append({"name": "more", "data_sets": ["demo"], "paradigms": ["dti"], "n": [5], "k": [5]})
    (home / "study.yaml").write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(app, ["study", str(home / "study.yaml"), "--list", "--json"])
    assert done.exit_code == 0, done.output
    listed = json.loads(done.stdout)
    assert [row["state"] for row in listed["runs"]] == ["done", "done", "to do"]
    assert listed["left"] == 1
    assert listed["tokens_left"] == listed["runs"][2]["tokens"] > 0
    assert listed["runs"][2]["seconds"] is not None  # at the speed that the same paradigm had; rounded, it may be 0
    wrong = CliRunner().invoke(app, ["study", str(home / "study.yaml"), "--only", "mian", "--list"])
    assert wrong.exit_code == 2
    assert "did you mean `main`?" in wrong.stderr


@pytest.mark.parametrize("there", [True, False])
def test_the_command_is_there_where_experiments_is(there: bool) -> None:
    code = "import dti_pipeline.cli as cli; print(*(command.name for command in cli.app.registered_commands))"
    without = "" if there else "import sys; sys.modules['experiments'] = None; "
    done = subprocess.run([sys.executable, "-c", without + code], capture_output=True, text=True, check=True)
    assert ("study" in done.stdout.split()) == there
    assert "compare" in done.stdout.split()


def test_a_prepared_log_needs_no_duckdb(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = study(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "duckdb" else find(name))
    prepare(grid, "demo", logs, {}, Paths(tmp_path))
    grid.data_sets["demo"].params["split"] = {"min_history": 6}
    with pytest.raises(InputError, match="duckdb is not installed here: run `dti study --prepare` where it is"):
        prepare(grid, "demo", logs, {}, Paths(tmp_path))


@pytest.mark.slow
def test_trials_on_a_rehearsal_are_prepared_trained_and_never_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(json.dumps(STUDY)) | {"figures": {}, "document": None}
    content["models"] = {"dry": {"model": {"dropout": 0.3}}}
    content["data_sets"]["demo"]["params"]["split"] = {"rule": "user_order"}
    recipe = {section: TINY[section] for section in ("packing", "model", "training")}
    content["data_sets"]["past"] = {"rehearsal": {"of": "demo", "train": 0.6}, "params": recipe}
    content["groups"] = [
        {"name": "trials", "data_sets": ["past"], "paradigms": ["dti"], "models": ["", "dry"], "measure": "validation"}
    ]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    task = command.Task(tmp_path / "study.yaml", tmp_path / "study", workers=2)
    untracked = config.load(Path("none"), ["tracking.enabled=false"])
    report = command.make(task, untracked, Paths(tmp_path), None, lambda text: None)
    assert (report["rows"], report["errors"], report["missing"]) == (2, 0, 0), rows_of(tmp_path)
    for row in rows_of(tmp_path):
        assert row["learning"][-1][1] == pytest.approx(row["validation_auc"], abs=1e-6)
        assert row["floors"]
        assert not [key for key in row if key.startswith(("auc", "test")) and row[key] is not None]
    assert not list(tmp_path.glob("study/past/runs/*/predictions.parquet"))

    # Brought along, a rehearsal needs neither duckdb nor the log that it was made of.
    shutil.rmtree(tmp_path / "study" / "demo")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    prepare(grids.load(task.grid), "past", task.work, {}, Paths(tmp_path))


def recorded(home: Path) -> tuple[MlflowClient, Run, dict[str, Run]]:
    """The store, the group's run, and the runs under it by their paradigm."""
    store = MlflowClient(Paths(home).tracking_uri)
    experiment = store.get_experiment_by_name("study: demo")
    assert experiment is not None
    found = store.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if run.info.run_name == "main"]
    return store, parent, {run.data.tags["paradigm"]: run for run in found if run is not parent}


@pytest.mark.slow
def test_mlflow_has_an_experiment_for_the_log_and_a_run_for_the_group_with_its_runs_under_it(home: Path) -> None:
    grid, paths = grids.load(home / "study.yaml"), Paths(home)
    settings = config.load(Path("none"))
    write.report(grid, home / "study", settings, paths)
    gathered = analyse.gather(grid, home / "study")
    gathered[1]["speedup"] = 9.5  # found later
    tracking.record_study(settings, paths, gathered, lambda own, group: f"{len(own)} of {group}", {})
    store, parent, children = recorded(home)
    assert len(children) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.data.metrics["test/auc"] for run in children.values()} == {round(row["auc"], 4) for row in gathered}
    assert children["dti"].data.metrics["comparison/speedup"] == 9.5
    assert parent.data.tags["mlflow.note.content"] == "2 of main"
    assert analyse.ROWS in [item.path for item in store.list_artifacts(parent.info.run_id)]
    pictures = [item.path for item in store.list_artifacts(parent.info.run_id, "pictures")]
    assert "pictures/study_leak_k.svg" in pictures


@pytest.mark.slow
def test_mlflow_has_seconds_of_trainings_that_had_their_machine_to_themselves_alone(home: Path) -> None:
    grid, timed = grids.load(home / "study.yaml"), {"time/train_seconds", "perf/targets_per_second"}

    def metrics() -> dict[str, dict[str, float]]:
        write.report(grid, home / "study", config.load(Path("none")), Paths(home))
        return {paradigm: run.data.metrics for paradigm, run in recorded(home)[2].items()}

    assert not any(timed & found.keys() for found in metrics().values())  # they were two at a time
    content = rows_of(home)
    content[0]["workers"] = 1
    analyse.save(grid, content)
    found = metrics()
    assert found["sliding_window"]["time/train_seconds"] == content[0]["train_seconds"]
    assert found["sliding_window"].keys() > timed
    assert not timed & found["dti"].keys()
