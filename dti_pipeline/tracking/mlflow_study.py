"""The study in MLflow: an experiment for each log, a run for each group, its runs under it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.tracking.mlflow_evaluation import NOTE, PARENT, log_metrics
from dti_pipeline.tracking.mlflow_store import author, connect, readable, tagged

Rows = list[dict[str, Any]]
#: Tags that find a record again.
ROW, GROUP = "study.config", "study.group"
#: A row's columns by the names that a training's own run has in MLflow, so that both can be compared on one page.
METRICS = {
    "auc": "test/auc", "auc_streaming": "test/auc_streaming", "log_loss": "test/log_loss", "gauc": "test/gauc",
    "train_seconds": "time/train_seconds", "targets_per_second": "perf/targets_per_second",
    "tokens_per_second": "perf/tokens_per_second", "speedup": "comparison/speedup", "tokens": "tokens",
    "fewer_tokens": "comparison/fewer_tokens", "peak_memory_gib": "mem/peak_gib",
}  # fmt: skip
PARAMS = ("paradigm", "k", "n", "delay", "fixes", "model", "epochs", "seed", "split")
TAGS = ("hardware", "commit", "workers", "data", "command")


def record_study(
    config: Config, paths: Paths, rows: Rows, page: Callable[[Rows, str], str], files: Mapping[str, Sequence[Path]]
) -> None:
    """Record the rows; refresh each group's page, ``page(rows of the log, group)``, and its ``files`` by folder. A row
    that has its record gets its new figures."""
    for data_set in dict.fromkeys(row["dataset"] for row in rows):
        named = replace(config, tracking=replace(config.tracking, experiment=f"study: {data_set}"))
        store, experiment = connect(named, paths)
        own = [row for row in rows if row["dataset"] == data_set]
        for group in dict.fromkeys(row["group"] for row in own):
            parent = tagged(store, experiment, (GROUP, group), group, author("dti study", paths)).info.run_id
            store.set_tag(parent, NOTE, page(own, group))
            for folder, paths_of in files.items():
                for path in paths_of:
                    store.log_artifact(parent, str(path), folder or None)
            for row in own:
                if row["group"] == group and "error" not in row:
                    _child(store, experiment, parent, row, paths)
            store.set_terminated(parent, "FINISHED")


def _child(store: MlflowClient, experiment: str, parent: str, row: Mapping[str, Any], paths: Paths) -> None:
    late = "" if row.get("delay") is None else f"delay={row['delay']:g}"
    name = f"{row['paradigm']} k={row['k']} n={row['n']} {late} {row['fixes']} {row['model']} seed={row['seed']}"
    tags = {PARENT: parent, "paradigm": row["paradigm"], **author("dti study", paths)}
    tags |= {key: str(row[key]) for key in TAGS if row.get(key) is not None}
    run = tagged(store, experiment, (ROW, row["config"]), " ".join(name.split()), tags)
    if run.info.status != "FINISHED":  # a new one
        params = [Param(key, str(row[key])) for key in PARAMS if row.get(key) not in (None, "")]
        now = int(time.time() * 1000)
        curve = [
            Metric("eval/auc", readable(auc), now, place) for place, (_, auc) in enumerate(row.get("learning") or [])
        ]
        store.log_batch(run.info.run_id, metrics=curve, params=params)
        store.set_terminated(run.info.run_id, "FINISHED")
    difference = row.get("auc_difference") or {}
    values = {name: row.get(key) for key, name in METRICS.items()} | {"comparison/auc_delta": difference.get("mean")}
    log_metrics(store, run, values)
