"""Run records: what a training tells ends up in MLflow once, whatever interrupts it; and nothing is kept when off."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from dti_pipeline import artifacts, config, lineage, pipeline, tracking
from dti_pipeline.backtest.publish import summary
from dti_pipeline.backtest.report import Cost, Day, Score
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.evaluation.report import Evaluation
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from dti_pipeline.tracking import mlflow_training, system_metrics
from dti_pipeline.tracking.mlflow_store import readable
from dti_pipeline.training import checkpoint
from dti_pipeline.training.progress import Listener
from dti_pipeline.training.report import TrainReport
from tests import reports
from tests.pipeline.recorded import DIGEST, publish_comparison, settings, started, stepped, store, train


def test_a_training_is_one_finished_run_that_says_what_shaped_it(tracked: Paths) -> None:
    run = store(tracked).get_run(train(tracked))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "dti n=20 k=50 seed=7"
    expected = to_plain(settings(tracked).training)
    assert {key: run.data.params[f"training.{key}"] for key in expected} == {k: str(v) for k, v in expected.items()}
    assert run.data.params["model.lora.rank"] == "16"
    assert run.data.tags["dagster.run_id"] == "abc"
    assert run.data.tags["paradigm"] == "dti"
    assert run.data.tags["hardware"] == "a CPU"
    assert run.data.tags["data.digest"] == DIGEST
    assert run.data.tags["version.torch"] == version("torch")
    assert run.data.tags["mlflow.source.git.commit"] == lineage.commit().sha
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == DIGEST


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.9267412, 0.9267), (-0.0039712345, -0.003971), (1.00015657, 1.0002), (10.94321, 10.94), (4.12e-06, 4.12e-06),
        (3553.21, 3553.0), (123456.7, 123457.0), (0.0, 0.0), (7, 7.0), (float("inf"), float("inf")),
    ],
)  # fmt: skip
def test_a_figure_has_the_digits_that_a_person_reads(value: float, shown: float) -> None:
    assert readable(value) == shown
    assert isinstance(readable(value), float)


def test_metrics_are_stepped_by_targets_seen(tracked: Paths) -> None:
    run_id = train(tracked)
    loss = store(tracked).get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in loss] == [(100 * s, round(1 / s, 4)) for s in range(1, 11)]
    last = store(tracked).get_run(run_id).data.metrics
    assert last["eval/auc"] == 0.7
    assert [p.value for p in store(tracked).get_metric_history(run_id, "time/train_seconds")][-2:] == [18.0, 20.5]
    assert {
        "train/learning_rate",
        "perf/targets_per_second",
        "perf/tokens_per_second",
        "mem/peak_gib",
    } <= set(last)


def test_a_training_of_any_length_has_readings_of_the_machine_by_targets_seen(
    tracked: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_metrics, "SECONDS", 3600.0)
    short = train(tracked)
    assert [p.step for p in store(tracked).get_metric_history(short, "system/cpu_utilization_percentage")] == [100]
    monkeypatch.setattr(system_metrics, "SECONDS", 0.0)
    long = train(tracked)
    for name in ("cpu_utilization_percentage", "system_memory_usage_megabytes"):
        points = store(tracked).get_metric_history(long, f"system/{name}")
        assert [point.step for point in points] == [100 * step for step in range(1, 11)]
        assert all(point.value >= 0 for point in points)


def test_values_are_written_in_batches(tracked: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, metrics: Any = (), **rest: Any) -> None:
        calls.append(len(metrics))
        real(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    train(tracked)
    written = [count for count in calls if count]
    assert sum(written) >= 60
    assert len(written) <= 3


def end_early(home: Paths, steps: int, error: BaseException) -> str:
    """Train some steps and end with an error; return the run's id."""
    run_id = None
    with suppress(type(error)), tracking.listener(settings(home), home, {}) as listen:
        run_id = listen(started())
        for step in range(1, steps + 1):
            listen(stepped(step))
        raise error
    assert run_id is not None
    return run_id


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("diverged"), "FAILED"), (CheckFailed("interrupted"), "KILLED"), (KeyboardInterrupt(), "KILLED")],
)
def test_a_failure_and_an_interruption_are_told_apart(tracked: Paths, error: BaseException, status: str) -> None:
    record = store(tracked).get_run(end_early(tracked, 1, error))
    assert record.info.status == status
    assert record.data.tags["error"] == f"{type(error).__name__}: {error}"
    assert record.data.metrics["train/loss"] == 1.0


def test_a_resumed_training_goes_on_in_its_run_without_a_second_point(tracked: Paths) -> None:
    run_id = end_early(tracked, 6, KeyboardInterrupt())
    assert train(tracked, steps=range(4, 11), known=run_id) == run_id  # its last checkpoint was after step 3
    loss = store(tracked).get_metric_history(run_id, "train/loss")
    assert [point.step for point in loss] == [100 * s for s in range(1, 11)]
    assert store(tracked).get_run(run_id).info.status == "FINISHED"


def test_a_checkpoint_of_a_run_that_is_gone_starts_a_new_one(tracked: Paths) -> None:
    assert train(tracked, known="f" * 32) != "f" * 32


def test_only_a_training_of_the_same_configuration_and_shards_names_the_run_to_continue(home: Paths) -> None:
    shard = home.shards("dti") / "train.arrow"
    artifacts.write_text(shard, "rows")
    folder = checkpoint.folder(settings(home), home, "dti")
    checkpoint.begin(folder, "abc")
    assert checkpoint.run_id(checkpoint.folder(settings(home), home, "dti")) == "abc"
    assert checkpoint.run_id(checkpoint.folder(config.load(home.params, ["training.epochs=9"]), home, "dti")) is None
    assert checkpoint.run_id(checkpoint.folder(settings(home), home, "sliding_window")) is None
    artifacts.write_text(shard, "other rows")
    assert checkpoint.run_id(checkpoint.folder(settings(home), home, "dti")) is None


def evaluation_of(run_id: str | None, **figures: Any) -> Evaluation:
    return replace(reports.EVALUATION, training=replace(reports.SUMMARY, mlflow_run_id=run_id), **figures)


def test_an_evaluation_lands_on_the_run_that_trained_and_twice_changes_nothing(tracked: Paths) -> None:
    run_id = train(tracked)
    events = tracked.events / "interactions.parquet"
    artifacts.write_text(events, "rows")
    with artifacts.publish(tracked.evaluation("dti"), "evaluate", inputs={"events": tracked.events}) as draft:
        (draft.path / "roc.png").write_bytes(b"png")
    for _ in range(2):
        tracking.record(settings(tracked), tracked, evaluation_of(run_id, auc=0.71, auc_streaming=0.72))
    assert [p.value for p in store(tracked).get_metric_history(run_id, "test/auc")] == [0.71]
    assert store(tracked).get_run(run_id).data.metrics["test/auc_streaming"] == 0.72
    inputs = {i.dataset.name: i.dataset.digest for i in store(tracked).get_run(run_id).inputs.dataset_inputs}
    assert inputs == {"shards/dti": DIGEST, "events": artifacts.folder_digest(tracked.events)}
    (version,) = store(tracked).search_model_versions("name = 'dti'")
    assert version.description == "test AUC 0.7100, streaming 0.7200: dti n=20 k=50 seed=7"
    model = store(tracked).get_logged_model(version.source.rpartition("/")[2])
    assert {(m.key, m.value, m.dataset_name) for m in model.metrics} >= {("test/auc", 0.71, "events")}
    assert "evaluation/roc.png" in [file.path for file in store(tracked).list_artifacts(run_id, "evaluation")]


def test_a_comparison_is_the_parent_of_its_trainings_and_is_made_once(tracked: Paths) -> None:
    runs = {name: train(tracked, name) for name in ("sliding_window", "dti")}
    comparison = publish_comparison(tracked, runs)
    for _ in range(2):
        tracking.record(settings(tracked), tracked, comparison)
    experiment = store(tracked).get_experiment_by_name("dti").experiment_id
    (parent,) = store(tracked).search_runs([experiment], "attributes.run_name LIKE 'comparison%'")
    assert parent.data.metrics["speedup/dti"] == 5.0
    assert parent.data.metrics["auc_delta/dti"] == 0.01
    assert parent.info.status == "FINISHED"
    children = store(tracked).search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_id for child in children} == set(runs.values())
    found = {child.data.tags["paradigm"]: child.data.metrics for child in children}
    assert (found["dti"]["comparison/speedup"], found["dti"]["comparison/auc_delta"]) == (5.0, 0.01)
    assert "comparison/speedup" not in found["sliding_window"]
    assert {child.data.tags["mlflow.note.content"] for child in children} == set(comparison.verdict.values())
    note = parent.data.tags["mlflow.note.content"]
    assert note == "- **sliding_window**: sliding_window is what it is.\n- **dti**: dti is what it is.\n\ntable\n\n"
    assert [i.dataset.digest for i in parent.inputs.dataset_inputs] == [DIGEST]
    tracking.record(settings(tracked), tracked, publish_comparison(tracked, runs, commit="other"))
    assert len(store(tracked).search_runs([experiment], "attributes.run_name LIKE 'comparison%'")) == 2


def test_what_was_trained_without_a_record_is_evaluated_without_one(tracked: Paths) -> None:
    tracking.record(settings(tracked), tracked, evaluation_of(None))
    experiment = store(tracked).get_experiment_by_name("dti").experiment_id
    assert store(tracked).search_runs([experiment]) == []


def test_only_the_first_process_keeps_a_record(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    heard: list[Listener] = []
    monkeypatch.setattr(pipeline.Stage, "run", lambda *_, listeners, **__: heard.extend(listeners))
    pipeline.execute(pipeline.TRAIN, settings(home), home, "dti")
    assert heard == []
    assert list(home.home.iterdir()) == []


def test_without_tracking_mlflow_is_never_imported(home: Paths) -> None:
    script = (
        "import sys; from dti_pipeline import config, tracking; from dti_pipeline.paths import Paths\n"
        "settings, paths = config.load(Paths.from_env().params, ['tracking.enabled=false']), Paths.from_env()\n"
        "from tests import reports\n"
        "with tracking.listener(settings, paths, {}) as listen: said = listen(None)\n"
        "tracking.record(settings, paths, reports.COMPARISON)\n"
        "print(said, 'mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]
    assert list(home.home.iterdir()) == []


def test_tracking_without_mlflow_says_what_to_set(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(InputError, match=r"tracking\.enabled=false"),
        tracking.listener(settings(home), home, {}),
    ):
        pytest.fail("a run was opened")


def test_a_store_that_does_not_answer_for_a_while_loses_no_value(
    tracked: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_training, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(mlflow_training, "AWAY_SECONDS", 0.0)
    real = MlflowClient.log_batch
    away = {"calls": 0}

    def flaky(self: MlflowClient, run_id: str, metrics: Any = (), **rest: Any) -> None:
        if metrics and away["calls"] < 3:
            away["calls"] += 1
            raise MlflowException("database is locked")
        real(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    run_id = train(tracked)
    assert away["calls"] == 3
    assert len(store(tracked).get_metric_history(run_id, "train/loss")) == 10


def test_a_store_that_is_away_is_not_asked_at_every_step(tracked: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(self: MlflowClient, run_id: str, metrics: Any = (), **rest: Any) -> None:
        if metrics:
            calls.append(len(metrics))
            raise MlflowException("connection refused")

    monkeypatch.setattr(mlflow_training, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    train(tracked)
    assert len(calls) == 2, "at the first step, and at the end for the last time"


def test_a_store_that_is_away_at_the_end_costs_no_training_and_the_evaluation_makes_up_for_it(
    tracked: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as away:
        away.setattr(MlflowClient, "create_logged_model", lambda *_: (_ for _ in ()).throw(MlflowException("away")))
        run_id = train(tracked)
    assert artifacts.read(tracked.model("dti"), "train", TrainReport).report.mlflow_run_id == run_id
    assert store(tracked).get_run(run_id).info.status == "RUNNING"
    artifacts.write_text(tracked.events / "interactions.parquet", "rows")
    with artifacts.publish(tracked.evaluation("dti"), "evaluate", inputs={"events": tracked.events}):
        pass
    tracking.record(settings(tracked), tracked, evaluation_of(run_id, auc_streaming=None))
    assert store(tracked).get_run(run_id).info.status == "FINISHED"
    assert [v.run_id for v in store(tracked).search_model_versions("name = 'dti'")] == [run_id]


def test_a_server_that_does_not_answer_is_one_sentence(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = config.load(home.params, ["tracking.uri=http://127.0.0.1:9"])
    with (
        pytest.raises(InputError, match=r"^MLflow failed \(tracking\.enabled=false works without it\): .*127\.0\.0\.1"),
        tracking.listener(away, home, {}),
    ):
        pytest.fail("a run was opened")


def test_artifacts_are_in_the_home_and_the_model_names_its_run(tracked: Paths) -> None:
    train(tracked)
    assert list(Path(tracked.mlflow_artifacts).glob("models/*/artifacts/artifacts/dti/model.safetensors"))
    assert json.loads((tracked.model("dti") / "manifest.json").read_text())["report"]["mlflow_run_id"]


def test_a_backtest_is_a_run_with_a_child_for_each_day(tracked: Paths) -> None:
    cost, score = Cost(32, 900, 1.5, 1.25), Score(0.7, 0.6)
    days = [
        Day(f"2020-01-0{day}", cost, f"2020-01-0{day + 1}", 30, score, {"2": Score(0.6, 0.65)}, None, None)
        for day in (1, 2, 3)
    ]
    made = config.load(tracked.params, ["backtest.staleness=[2]"])
    for count in (2, 3):  # again when the log has grown: the same run, a child more
        report = summary(made, "dti", days[:count], 60.0, "a CPU", None)
        with artifacts.publish(tracked.backtest("dti"), "backtest", made.sections("backtest")) as draft:
            draft.report = report
        content = json.loads((tracked.backtest("dti") / "manifest.json").read_text())
        content |= {"inputs": {"events": DIGEST, "tokens": DIGEST}}
        artifacts.write_json(tracked.backtest("dti") / "manifest.json", artifacts.sealed(content))
        tracking.record(made, tracked, report)
        experiment = store(tracked).get_experiment_by_name("dti").experiment_id
        found = store(tracked).search_runs([experiment])
        (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert sorted(run.info.run_name for run in children) == [f"dti {day.day}" for day in days[:count]]
        assert {run.info.status for run in found} == {"FINISHED"}
        assert parent.data.metrics["backtest/auc"] == pytest.approx(0.7)
        assert parent.data.metrics["backtest/auc_lost/2"] == pytest.approx(0.1)
        assert {run.data.metrics["day/processor_seconds"] for run in children} == {1.25}
        assert parent.data.params["backtest.period_days"] == "1.0"


def test_a_checkpoint_of_a_deleted_run_starts_a_new_one(tracked: Paths) -> None:
    run_id = end_early(tracked, 3, KeyboardInterrupt())
    store(tracked).delete_run(run_id)
    again = train(tracked, known=run_id)
    assert again != run_id
    assert store(tracked).get_run(again).info.status == "FINISHED"


def test_a_deleted_experiment_is_one_sentence(tracked: Paths) -> None:
    run_id = train(tracked)
    store(tracked).delete_experiment(store(tracked).get_run(run_id).info.experiment_id)
    with pytest.raises(InputError, match="experiment 'dti' was deleted: restore it"):
        train(tracked)


def test_a_locked_store_is_one_sentence(tracked: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: Any) -> None:
        raise OperationalError("BEGIN", {}, sqlite3.OperationalError("database is locked"))

    monkeypatch.setattr(mlflow_training, "connect", locked)
    with pytest.raises(InputError, match=r"MLflow failed .*database is locked"):
        train(tracked)
