"""The record of a training by which it can be made again: ``record.json`` on its run, and what is read back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from dti_pipeline import artifacts, lineage
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from dti_pipeline.reproduction.report import Recorded
from dti_pipeline.tracking import registry
from dti_pipeline.tracking.mlflow_store import active_run, connect
from dti_pipeline.training.progress import Started

FILE, METRICS = "record.json", "evaluation/metrics.json"
#: Sections that say how and where something is made or kept, and not what; an address may hold a password.
LEFT_OUT = ("tracking", "serving", "execution")


def record(config: Config, paths: Paths, started: Started) -> dict[str, Any]:
    """Parameters with their types, the digests of everything read on the way from the raw log, code and machine."""
    sections = {name: value for name, value in to_plain(config).items() if name not in LEFT_OUT}
    return {
        "paradigm": started.paradigm,
        "config": sections,
        "inputs": _inputs(paths, started.paradigm) | {"shards": started.dataset_digest},
        "commit": lineage.commit_name(),
        "versions": lineage.versions(),
        "hardware": started.hardware,
        "device": started.device,
        "processes": started.world_size,
        "threads": started.threads,
    }


def _inputs(paths: Paths, paradigm: str) -> dict[str, Any]:
    """Digests of tokens, events and the files of the log; those that the home does not hold any more are left out."""
    found: dict[str, Any] = {}
    for name, folder, stage in (
        ("tokens", paths.shards(paradigm), "pack"),
        ("events", paths.tokens, "tokenize"),
        ("log", paths.events, "ingest"),
    ):
        try:
            inputs = artifacts.read(folder, stage, whole=False).inputs
        except InputError:
            return found
        if name == "log" and artifacts.folder_digest(paths.events) == found["events"]:
            found["log"] = inputs
        elif name != "log" and name in inputs:
            found[name] = inputs[name]
        else:
            return found
    return found


def recorded(config: Config, paths: Paths, run_id: str) -> Recorded:
    """A training by its run: its record, its metrics, and the folder of its model. InputError where the store has no
    such run, or it is none of a training, or it ended without a model or a record."""
    store, _ = connect(config, paths)
    run = active_run(store, run_id)
    if run is None:
        raise InputError(f"run {run_id} is not in this MLflow store")
    kind = run.data.tags.get("mlflow.source.name")
    if "paradigm" not in run.data.params or kind != "dti train":
        raise InputError(f"run {run_id} is one of `{kind}`, not of a training")
    if FILE not in [file.path for file in store.list_artifacts(run_id)]:
        raise InputError(f"run {run_id} has no {FILE}: a version trained it that did not keep one")
    said = _json(store, run_id, FILE)
    judged = [file.path for file in store.list_artifacts(run_id, "evaluation")]
    # Of the file, which has every digit.
    found = _json(store, run_id, METRICS) if METRICS in judged else {}
    figures = {f"{found['split']}/{name}": one for name, one in found.items() if isinstance(one, (int, float))}
    threads = found["scoring"].get("threads") if found else None
    address = registry.address_of(store, config, run_id)
    if address is None:
        raise InputError(f"run {run_id} has no model in the registry: it is {run.info.status}")
    return Recorded(run_id, said, figures, registry.folder(config, paths, address), threads)


def _json(store: MlflowClient, run_id: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as aside:
        path = download_artifacts(f"runs:/{run_id}/{name}", dst_path=aside, tracking_uri=store.tracking_uri)
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        return content
