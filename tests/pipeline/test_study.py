"""A study that was made: its rows, its report, its record in MLflow, and what is left to do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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
from experiments.run import ROW, folder
from tests.pipeline.studies import rows_of, study

CONTRACT = {
    "dataset", "split", "paradigm", "k", "n", "fixes", "epochs", "seed", "auc", "auc_streaming", "log_loss", "gauc",
    "train_seconds", "targets_per_second", "tokens_per_second", "tokens", "speedup", "auc_difference", "floors",
    "hardware", "commit", "command", "config",
}  # fmt: skip


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


@pytest.fixture
def tracked(home: Path, empty_store: Path) -> Path:
    """The same with an empty store."""
    shutil.copy(empty_store, home / "mlflow.db")
    return home


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


def recorded(home: Path) -> tuple[MlflowClient, Run, dict[str, Run]]:
    """The store, the group's run, and the runs under it by their paradigm."""
    store = MlflowClient(Paths(home).tracking_uri)
    experiment = store.get_experiment_by_name("study: demo")
    assert experiment is not None
    found = store.search_runs([experiment.experiment_id])
    (parent,) = [run for run in found if run.info.run_name == "main"]
    return store, parent, {run.data.tags["paradigm"]: run for run in found if run is not parent}


@pytest.mark.slow
def test_mlflow_has_an_experiment_for_the_log_and_a_run_for_the_group_with_its_runs_under_it(tracked: Path) -> None:
    grid, paths = grids.load(tracked / "study.yaml"), Paths(tracked)
    settings = config.load(Path("none"))
    write.report(grid, tracked / "study", settings, paths)
    gathered = analyse.gather(grid, tracked / "study")
    gathered[1]["speedup"] = 9.5  # found later
    tracking.record_study(settings, paths, gathered, lambda own, group: f"{len(own)} of {group}", {})
    store, parent, children = recorded(tracked)
    assert len(children) == 2
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.data.metrics["test/auc"] for run in children.values()} == {round(row["auc"], 4) for row in gathered}
    assert children["dti"].data.metrics["comparison/speedup"] == 9.5
    assert parent.data.tags["mlflow.note.content"] == "2 of main"
    assert analyse.ROWS in [item.path for item in store.list_artifacts(parent.info.run_id)]
    pictures = [item.path for item in store.list_artifacts(parent.info.run_id, "pictures")]
    assert "pictures/study_leak_k.svg" in pictures


@pytest.mark.slow
def test_mlflow_has_seconds_of_trainings_that_had_their_machine_to_themselves_alone(tracked: Path) -> None:
    grid, timed = grids.load(tracked / "study.yaml"), {"time/train_seconds", "perf/targets_per_second"}

    def metrics() -> dict[str, dict[str, float]]:
        write.report(grid, tracked / "study", config.load(Path("none")), Paths(tracked))
        return {paradigm: run.data.metrics for paradigm, run in recorded(tracked)[2].items()}

    assert not any(timed & found.keys() for found in metrics().values())  # they were two at a time
    content = rows_of(tracked)
    content[0]["workers"] = 1
    analyse.save(grid, content)
    found = metrics()
    assert found["sliding_window"]["time/train_seconds"] == content[0]["train_seconds"]
    assert found["sliding_window"].keys() > timed
    assert not timed & found["dti"].keys()
