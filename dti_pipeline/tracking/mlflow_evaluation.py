"""Evaluations in MLflow: test metrics on each training's run, a comparison as their parent."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.evaluation.report import Comparison, Evaluation
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import registry
from dti_pipeline.tracking.mlflow_store import connect, dataset

log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # Markdown that the run's page opens with
COMPARISON = "comparison.digest"


def record_evaluation(config: Config, paths: Paths, report: Evaluation) -> None:
    """``<split>/auc``, ``<split>/auc_streaming``, ... and the evaluation's files onto the run that trained the model.

    A model that was trained without a record is left without one; the log says so.
    """
    store, _ = connect(config, paths)
    run = _trained(store, report.training.mlflow_run_id, report.paradigm)
    if run is None:
        return
    paradigm, split = report.paradigm, report.split
    events = artifacts.read(paths.evaluation(paradigm), "evaluate").inputs["events"]
    figures = {f"{split}/{name}": value for name, value in vars(report).items() if _is_figure(value)}
    version = registry.register(store, config, paths.model(paradigm), run)
    if run.info.status != "FINISHED":  # the store was away when the training ended
        store.set_terminated(run.info.run_id, "FINISHED")
    log_metrics(store, run, figures, model_id=version.source.rpartition("/")[2], data=("events", events))
    store.log_inputs(run.info.run_id, [dataset("events", events, split)])
    store.log_artifacts(run.info.run_id, str(paths.evaluation(paradigm)), "evaluation")
    described = f"{split} AUC {_four(report.auc)}, streaming {_four(report.auc_streaming)}: {run.info.run_name}"
    store.update_model_version(version.name, version.version, described)


def record_comparison(config: Config, paths: Paths, comparison: Comparison) -> None:
    """One run that is the parent of the compared trainings and holds the tables, plots, speed-ups and AUC differences.

    The same comparison recorded again finds its run; another one makes a new parent, to which the trainings move.
    """
    store, experiment = connect(config, paths)
    trained = {name: _trained(store, row.mlflow_run_id, name) for name, row in comparison.each()}
    children = {name: run for name, run in trained.items() if run is not None}
    if not children:
        return
    parent = _parent(store, experiment, artifacts.file_digest(paths.comparison_file("json")), comparison)
    log_metrics(store, parent, _headline(comparison))
    store.set_tag(parent.info.run_id, NOTE, _note(comparison, paths.comparison_file("md").read_text(encoding="utf-8")))
    store.log_inputs(parent.info.run_id, [dataset("events", comparison.protocol.events, comparison.protocol.split)])
    for suffix in ("json", "md", "html"):
        store.log_artifact(parent.info.run_id, str(paths.comparison_file(suffix)))
    store.log_artifacts(parent.info.run_id, str(paths.comparison), "plots")
    for name, run in children.items():
        store.set_tag(run.info.run_id, PARENT, parent.info.run_id)
        store.set_tag(run.info.run_id, NOTE, comparison.verdict[name])
        log_metrics(store, run, _against_baseline(comparison, name))
    store.set_terminated(parent.info.run_id, "FINISHED")


def _parent(store: MlflowClient, experiment: str, digest: str, comparison: Comparison) -> Run:
    found = store.search_runs([experiment], f"tags.`{COMPARISON}` = '{digest}'", max_results=1)
    if found:
        return found[0]
    tags = {
        COMPARISON: digest,
        "dataset": comparison.dataset,
        "champion": comparison.champion,
        "hardware": comparison.hardware,
        "mlflow.source.git.commit": comparison.commit,
        "mlflow.user": os.environ.get("USER", ""),
        "mlflow.source.name": "dti compare",
        "mlflow.source.type": "LOCAL",
    }
    name = "comparison of " + ", ".join(name for name, _ in comparison.each())
    return store.create_run(experiment, run_name=name, tags={key: value for key, value in tags.items() if value})


def _headline(comparison: Comparison) -> dict[str, float]:
    parts: dict[str, Mapping[str, float | None]] = {
        "speedup": comparison.speedup,
        "auc_delta": {name: delta.mean for name, delta in comparison.auc_delta.items()},
        "baseline_auc": comparison.baselines,
        "auc": {name: row.auc for name, row in comparison.paradigms.items()},
    }
    flat = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    return {name: value for name, value in flat.items() if value is not None}


def _note(comparison: Comparison, page: str) -> str:
    """The verdict first, since MLflow folds a description after four lines; then the part of comparison.md before its
    own: the conditions and the table."""
    verdict = "\n".join(f"- **{name}**: {comparison.verdict[name]}" for name, _ in comparison.each())
    return f"{verdict}\n\n{page.partition('## Verdict')[0]}"


def _against_baseline(comparison: Comparison, paradigm: str) -> dict[str, float]:
    """Speed-up of a training against the baseline, and its cost in AUC."""
    delta = comparison.auc_delta.get(paradigm)
    found = {"speedup": comparison.speedup.get(paradigm), "auc_delta": delta.mean if delta else None}
    return {f"comparison/{name}": round(value, 6) for name, value in found.items() if value is not None}  # a column


def _trained(store: MlflowClient, run_id: str | None, paradigm: str) -> Run | None:
    if run_id is None:
        log.info("%s was trained without a record; nothing is added to one", paradigm)
        return None
    try:
        return store.get_run(run_id)
    except MlflowException:
        log.warning("run %s of %s is not in this MLflow store; nothing is added to it", run_id, paradigm)
        return None


def log_metrics(
    store: MlflowClient,
    run: Run,
    figures: Mapping[str, float],
    model_id: str | None = None,
    data: tuple[str | None, str | None] = (None, None),
) -> None:
    """Log what differs from the run's last values, so that a repeated evaluation leaves no second point.

    ``model_id`` and ``data`` (name, digest) say of which model and on what they hold, for MLflow's page of models.
    """
    now, run_id = int(time.time() * 1000), run.info.run_id
    new = {name: value for name, value in figures.items() if run.data.metrics.get(name) != value}
    points = [Metric(name, float(value), now, 0, model_id, *data, run_id) for name, value in new.items()]
    store.log_batch(run_id, points)


def _four(auc: float | None) -> str:
    return "not defined" if auc is None else f"{auc:.4f}"


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
