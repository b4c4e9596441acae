"""The real stages, from the log to the comparison, through Dagster and through DVC, in a small project of its own."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient

from tests.project import DVC, Project

pytestmark = pytest.mark.slow


def test_demo_ends_with_the_table_and_where_to_look(demonstrated: tuple[Project, str]) -> None:
    project, printed = demonstrated
    assert "| `sliding_window` |" in printed
    assert "| `dti` |" in printed
    assert str(project.paths.comparison_file("html")) in printed
    assert "curves (needs `make ui` or `mlflow ui`): http://" in printed
    for noise in ("[pipes]", "blocks of users packed", "files parsed"):
        assert noise not in printed
    comparison = json.loads(project.paths.comparison_file("json").read_text())
    assert set(comparison["paradigms"]) == {"sliding_window", "dti"}


def test_after_dagster_dvc_has_nothing_to_do(demonstrated: tuple[Project, str]) -> None:
    project, _ = demonstrated
    assert "up to date" in project.run(DVC, "status")
    repro = project.run(DVC, "repro")
    assert "Running stage" not in repro
    assert repro.count("didn't change, skipping") == 11


def test_git_sees_nothing_but_the_lock(demonstrated: tuple[Project, str]) -> None:
    project, _ = demonstrated
    assert project.run("git", "status", "--porcelain").split("\n") == ["?? dvc.lock", ""]


def test_one_digest_names_the_data_in_dvc_and_mlflow(demonstrated: tuple[Project, str]) -> None:
    project, _ = demonstrated
    store = MlflowClient(project.paths.tracking_uri)
    experiment = store.get_experiment_by_name("dti").experiment_id
    trainings = store.search_runs([experiment], "tags.paradigm != ''")
    assert {run.info.status for run in trainings} == {"FINISHED"}
    lock = project.lock()
    made = {"events": lock["ingest"]["data/events"]}
    made |= {f"shards/{p}": lock[f"pack@{p}"][f"data/shards/{p}"] for p in ("sliding_window", "dti")}
    for run in trainings:
        digests = {used.dataset.name: f"{used.dataset.digest}.dir" for used in run.inputs.dataset_inputs}
        shards = f"shards/{run.data.tags['paradigm']}"
        assert digests == {name: made[name] for name in ("events", shards)}
        assert f"{run.data.tags['data.digest']}.dir" == made[shards]


def test_mlflow_holds_what_was_found_and_groups_the_comparison(demonstrated: tuple[Project, str]) -> None:
    project, _ = demonstrated
    store = MlflowClient(project.paths.tracking_uri)
    experiment = store.get_experiment_by_name("dti").experiment_id
    (parent,) = store.search_runs([experiment], "attributes.run_name LIKE 'comparison%'")
    comparison = json.loads(project.paths.comparison_file("json").read_text())
    for paradigm, row in comparison["paradigms"].items():
        run = store.get_run(row["mlflow_run_id"])
        assert run.data.tags["paradigm"] == paradigm
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["dagster.run_id"]
        assert run.data.metrics["test/auc"] == round(row["auc"], 4)
        assert run.data.metrics["time/train_seconds"] == pytest.approx(row["train_seconds"], rel=1e-3)


def test_dvc_shows_the_comparison(demonstrated: tuple[Project, str]) -> None:
    project, _ = demonstrated
    shown = json.loads(project.run(DVC, "metrics", "show", "--json"))[""]["data"]
    comparison = json.loads(project.paths.comparison_file("json").read_text())
    for paradigm, row in comparison["paradigms"].items():
        assert shown[f"reports/comparison/metrics/{paradigm}.json"]["data"]["auc"] == row["auc"]
    project.run(DVC, "plots", "show")
    page = (project.home / "dvc_plots" / "index.html").read_text()
    for column in ("fpr", "predicted", "train_seconds", "speedup"):
        assert f'"{column}"' in page


def test_both_entry_points_make_the_same_bytes(
    demonstrated: tuple[Project, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    through_dagster, _ = demonstrated
    through_dvc = Project(tmp_path_factory.mktemp("dvc"))
    ran = through_dvc.run(DVC, "repro", "pack")
    assert ran.count("Running stage") == 6
    expected = through_dagster.lock()
    for stage, outs in through_dvc.lock().items():
        assert outs == expected[stage], stage
