"""A backtest in MLflow: one run, with a child for each day."""

from __future__ import annotations

import hashlib
import json

from mlflow.entities import Param

from dti_pipeline import artifacts
from dti_pipeline.backtest.report import BacktestReport, Day
from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.tracking.mlflow_evaluation import NOTE, PARENT, log_metrics
from dti_pipeline.tracking.mlflow_store import author, connect, dataset, flatten, tagged

#: Tags that find a record again: of the backtest, which its configuration names, and of a day.
BACKTEST, DAY = "backtest.config", "backtest.day"


def record_backtest(config: Config, paths: Paths, report: BacktestReport) -> None:
    """Figures and files of a backtest, and a child for each day.

    A backtest of the same configuration, over a log that has grown, keeps its run: days that have a child get their new
    figures.
    """
    store, experiment = connect(config, paths)
    published = artifacts.read(paths.backtest(report.paradigm), "backtest")
    shaped = json.dumps([report.paradigm, published.config, report.delay], sort_keys=True)
    known = hashlib.md5(shaped.encode()).hexdigest()
    tags = {"paradigm": report.paradigm, "hardware": report.hardware, **author("dti backtest", paths)}
    parent = tagged(store, experiment, (BACKTEST, known), f"backtest of {report.paradigm}", tags)
    run_id = parent.info.run_id
    if parent.info.status != "FINISHED":
        params = {"paradigm": report.paradigm, **flatten(published.config)}
        store.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    figures = {name: value for name, value in vars(report).items() if isinstance(value, (int, float))}
    lost = {f"auc_lost/{age}": stale.auc_lost for age, stale in report.staleness.items()}
    log_metrics(store, parent, {f"backtest/{name}": value for name, value in {**figures, **lost}.items()})
    store.set_tag(run_id, NOTE, f"```\n{report.listing()}\n```")
    store.log_inputs(run_id, [dataset(name, published.inputs[name], "backtest") for name in ("events", "tokens")])
    store.log_artifacts(run_id, str(published.path), "backtest")
    for day in report.days:
        child = tagged(
            store, experiment, (DAY, f"{known} {day.day}"), f"{report.paradigm} {day.day}", {**tags, PARENT: run_id}
        )
        log_metrics(store, child, _figures(day))
        store.set_terminated(child.info.run_id, "FINISHED")
    store.set_terminated(run_id, "FINISHED")


def _figures(day: Day) -> dict[str, float | None]:
    scores = {"": day.score, **{f"_{age}_old": score for age, score in day.stale.items()}}
    if day.fresh is not None:
        scores["_fresh"] = day.fresh
    figures = {f"day/{name}{of}": getattr(score, name) for of, score in scores.items() for name in ("auc", "log_loss")}
    costs = {"": day.learnt} | ({"_fresh": day.fresh_learnt} if day.fresh_learnt else {})
    figures |= {f"day/{name}{of}": float(value) for of, cost in costs.items() for name, value in vars(cost).items()}
    return {**figures, "day/judged": float(day.judged)}
