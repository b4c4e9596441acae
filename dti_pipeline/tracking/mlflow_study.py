"""The study in MLflow: an experiment for each log, a run for each group, its runs under it.

Rows of the results file alone are recorded, so that runs made on a machine without MLflow are recorded all the same. A
row that has its record gets its new figures: a speed-up, a difference.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run

from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.tracking.mlflow_evaluation import NOTE, PARENT, log_metrics
from dti_pipeline.tracking.mlflow_store import connect

#: Tags that find a record again.
ROW, GROUP = "study.config", "study.group"
#: A row's columns by the names that a training's own run has in MLflow, so that both can be compared on one page.
METRICS = {
    "auc": "test/auc", "auc_streaming": "test/auc_streaming", "log_loss": "test/log_loss", "gauc": "test/gauc",
    "train_seconds": "time/train_seconds", "targets_per_second": "perf/targets_per_second",
    "tokens_per_second": "perf/tokens_per_second", "speedup": "comparison/speedup", "tokens": "tokens",
    "fewer_tokens": "comparison/fewer_tokens", "peak_memory_gib": "mem/peak_gib",
}  # fmt: skip
PARAMS = ("paradigm", "k", "n", "fixes", "model", "epochs", "seed", "split")
TAGS = ("hardware", "commit", "workers", "data", "command")


def record_study(
    config: Config,
    paths: Paths,
    rows: list[dict[str, Any]],
    page: Callable[[list[dict[str, Any]], str], str],
    files: Mapping[str, Sequence[Path]],
) -> None:
    """Record the rows; refresh each group's page, ``page(rows of the log, group)``, and its ``files`` by folder."""
    for data_set in dict.fromkeys(row["dataset"] for row in rows):
        named = replace(config, tracking=replace(config.tracking, experiment=f"study: {data_set}"))
        store, experiment = connect(named, paths)
        own = [row for row in rows if row["dataset"] == data_set]
        for group in dict.fromkeys(row["group"] for row in own):
            parent = _parent(store, experiment, group)
            store.set_tag(parent, NOTE, page(own, group))
            for folder, paths_of in files.items():
                for path in paths_of:
                    store.log_artifact(parent, str(path), folder or None)
            for row in own:
                if row["group"] == group and "error" not in row:
                    _child(store, experiment, parent, row)
            store.set_terminated(parent, "FINISHED")


def _parent(store: MlflowClient, experiment: str, group: str) -> str:
    found = store.search_runs([experiment], f"tags.`{GROUP}` = '{group}'", max_results=1)
    if found:
        return found[0].info.run_id
    return store.create_run(experiment, run_name=group, tags={GROUP: group, **_author()}).info.run_id


def _child(store: MlflowClient, experiment: str, parent: str, row: Mapping[str, Any]) -> None:
    found = store.search_runs([experiment], f"tags.`{ROW}` = '{row['config']}'", max_results=1)
    run = found[0] if found else _created(store, experiment, parent, row)
    values = {METRICS[key]: row[key] for key in METRICS if row.get(key) is not None}
    if (difference := row.get("auc_difference")) is not None:
        values["comparison/auc_delta"] = difference["mean"]
    log_metrics(store, run, values)


def _created(store: MlflowClient, experiment: str, parent: str, row: Mapping[str, Any]) -> Run:
    name = f"{row['paradigm']} k={row['k']} n={row['n']} {row['fixes']} {row['model']} seed={row['seed']}"
    tags = {PARENT: parent, ROW: row["config"], "paradigm": row["paradigm"], **_author()}
    tags |= {key: str(row[key]) for key in TAGS if row.get(key) is not None}
    run = store.create_run(experiment, run_name=" ".join(name.split()), tags=tags)
    params = [Param(key, str(row[key])) for key in PARAMS if row.get(key) not in (None, "")]
    now = int(time.time() * 1000)
    curve = [Metric("eval/auc", auc, now, place) for place, (_, auc) in enumerate(row.get("learning") or [])]
    store.log_batch(run.info.run_id, metrics=curve, params=params)
    store.set_terminated(run.info.run_id, "FINISHED")
    return run


def _author() -> dict[str, str]:
    return {"mlflow.user": os.environ.get("USER", ""), "mlflow.source.name": "dti study", "mlflow.source.type": "LOCAL"}
