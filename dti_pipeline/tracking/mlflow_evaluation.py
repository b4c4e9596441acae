"""Evaluations in MLflow: test metrics on each training's run, a comparison as their parent."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Run

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.evaluation import speed
from dti_pipeline.evaluation.report import Comparison, Evaluation
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import registry
from dti_pipeline.tracking.mlflow_store import active_run, author, connect, dataset, end_killed, readable, tagged

log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # Markdown that the run's page opens with
COMPARISON = "comparison.digest"


def record_evaluation(config: Config, paths: Paths, report: Evaluation) -> None:
    """Figures (``<split>/auc``, ...) and files of an evaluation onto the run that trained its model, where one did."""
    store, _ = connect(config, paths)
    run = trained(store, report.training.mlflow_run_id, report.paradigm)
    if run is None:
        return
    paradigm, split = report.paradigm, report.split
    events = artifacts.read(paths.evaluation(paradigm), "evaluate").inputs["events"]
    figures = {f"{split}/{name}": value for name, value in vars(report).items() if isinstance(value, (int, float))}
    version = registry.register(store, config, paths.model(paradigm), run)
    if run.info.status != "FINISHED":  # the store was away when the training ended
        store.set_terminated(run.info.run_id, "FINISHED")
    log_metrics(store, run, figures, of=(version.source.rpartition("/")[2], "events", events))
    store.log_inputs(run.info.run_id, [dataset("events", events, split)])
    store.log_artifacts(run.info.run_id, str(paths.evaluation(paradigm)), "evaluation")
    described = f"{split} AUC {_four(report.auc)}, streaming {_four(report.auc_streaming)}: {run.info.run_name}"
    store.update_model_version(version.name, version.version, described)


def record_comparison(config: Config, paths: Paths, comparison: Comparison) -> None:
    """One run, made once, with tables, plots, speed-ups and AUC differences: the parent of the compared trainings."""
    store, experiment = connect(config, paths)
    runs = {name: trained(store, row.mlflow_run_id, name) for name, row in comparison.each()}
    children = {name: run for name, run in runs.items() if run is not None}
    if not children:
        return
    tags = {
        "dataset": comparison.dataset,
        "champion": comparison.champion,
        "hardware": comparison.hardware,
        "mlflow.source.git.commit": comparison.commit,
        **author("dti compare", paths),
    }
    end_killed(store, experiment, config, author("dti compare", paths))  # the present one ends below, made or found
    digest = artifacts.file_digest(paths.comparison_file("json"))
    name = f"comparison of {', '.join(runs)}"
    parent = tagged(store, experiment, (COMPARISON, digest), name, {key: value for key, value in tags.items() if value})
    run_id = parent.info.run_id
    log_metrics(store, parent, _headline(comparison))
    # The verdict first, since MLflow folds a description after four lines; then comparison.md up to its own.
    page = paths.comparison_file("md").read_text(encoding="utf-8").partition("## Verdict")[0]
    verdict = "\n".join(f"- **{name}**: {comparison.verdict[name]}" for name in runs)
    store.set_tag(run_id, NOTE, f"{verdict}\n\n{page}")
    store.log_inputs(run_id, [dataset("events", comparison.protocol.events, comparison.protocol.split)])
    for suffix in ("json", "md", "html"):
        store.log_artifact(run_id, str(paths.comparison_file(suffix)))
    store.log_artifacts(run_id, str(paths.comparison), "plots")
    for name, run in children.items():
        store.set_tag(run.info.run_id, PARENT, run_id)
        store.set_tag(run.info.run_id, NOTE, comparison.verdict[name])
        delta = comparison.auc_delta.get(name)
        against = {"speedup": comparison.speedup.get(name), "auc_delta": delta.mean if delta else None}
        against |= speed.figures(comparison.speed[name]) if name in comparison.speed else {}
        log_metrics(store, run, {f"comparison/{key}": value for key, value in against.items()})
    store.set_terminated(run_id, "FINISHED")


def _headline(comparison: Comparison) -> dict[str, float | None]:
    parts: dict[str, Mapping[str, float | None]] = {
        "speedup": comparison.speedup,
        **{
            key: {name: speed.figures(one).get(key) for name, one in comparison.speed.items()}
            for key in ("speedup_clock", "speedup_processor", "fewer_tokens")
        },
        "auc_delta": {name: delta.mean for name, delta in comparison.auc_delta.items()},
        "baseline_auc": comparison.baselines,
        "auc": {name: row.auc for name, row in comparison.paradigms.items()},
    }
    return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


def trained(store: MlflowClient, run_id: str | None, paradigm: str) -> Run | None:
    """The run of a training; None, and a line that says so, where there is none or the store has it not."""
    if run_id is None:
        log.info("%s was trained without a record; nothing is added to one", paradigm)
        return None
    run = active_run(store, run_id)
    if run is None:
        log.warning("run %s of %s is not in this MLflow store; nothing is added to it", run_id, paradigm)
    return run


def log_metrics(
    store: MlflowClient, run: Run, figures: Mapping[str, float | None], of: Sequence[str | None] = (None, None, None)
) -> None:
    """Log figures that differ from the run's last ones, ``of`` a model (id) on a data set (name, digest), to the digits
    that a person reads: the files of the run have them all."""
    now, run_id, last = int(time.time() * 1000), run.info.run_id, run.data.metrics
    read = {name: readable(value) for name, value in figures.items() if value is not None}
    points = [Metric(name, value, now, 0, *of, run_id) for name, value in read.items() if value != last.get(name)]
    store.log_batch(run_id, points)


def _four(auc: float | None) -> str:
    return "not defined" if auc is None else f"{auc:.4f}"
