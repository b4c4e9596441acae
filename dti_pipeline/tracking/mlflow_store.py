"""The MLflow store of a configuration, and its experiment."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import socket
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Run
from mlflow.exceptions import MlflowException
from mlflow.store.db.utils import _get_latest_schema_revision

from dti_pipeline import locks
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import mlflow_page

HOME = "home"  # tag: machine and folder of the project that made a run


def active_run(store: MlflowClient, run_id: str) -> Run | None:
    """A run by its id; None where the store does not have it, or it was deleted there."""
    try:
        run = store.get_run(run_id)
    except MlflowException:
        return None
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def uri(config: Config, paths: Paths) -> str:
    """MLflow's tracking URI."""
    return config.tracking.uri or paths.tracking_uri


def connect(config: Config, paths: Paths) -> tuple[MlflowClient, str]:
    """A client and the experiment's id; the experiment is made when it does not exist."""
    if config.tracking.uri is None and re.search("%[0-9A-Fa-f]{2}", str(paths.home)):
        raise InputError(
            f"MLflow takes the % in {paths.home} for an escape: rename the folder, set params key `tracking.uri` to a"
            " server's address, or `tracking.enabled` to false"
        )
    logging.getLogger("alembic").setLevel(logging.WARNING)  # or it prints a line for each table of a new store
    if config.tracking.uri is None:
        _make_database(paths.home / "mlflow.db")
    store = MlflowClient(uri(config, paths))
    name = config.tracking.experiment
    found = store.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage != LifecycleStage.ACTIVE:
            raise InputError(
                f"MLflow's experiment {name!r} was deleted: restore it (`mlflow experiments restore --experiment-id"
                f" {found.experiment_id}`), or set params key `tracking.experiment` to another name"
            )
        return store, found.experiment_id
    # A server knows where its artifacts go; the home's own store keeps them in the home.
    location = None if config.tracking.uri else paths.mlflow_artifacts.as_uri()
    try:
        return store, store.create_experiment(name, location, mlflow_page.experiment_tags())
    except MlflowException:  # another training made it a moment ago
        found = store.get_experiment_by_name(name)
        if found is None:
            raise
        return store, found.experiment_id


def _make_database(database: Path) -> None:
    """Make the home's own database aside and rename it into place: of a killed process half of one would stay, which
    MLflow refuses for ever. One that is half made, and holds no run, is made anew."""
    if database.is_file() and not _half_made(database):
        return
    with locks.alone(database.parent / ".cache" / database.name):
        if database.is_file() and not _half_made(database):  # another process made it
            return
        aside = database.with_name(f"{database.name}.draft")
        for left in (aside, *(database.with_name(f"{database.name}{end}") for end in ("-journal", "-wal", "-shm"))):
            left.unlink(missing_ok=True)
        escaped = str(aside).replace("%", "%25").replace("?", "%3F")
        MlflowClient(f"sqlite:///{escaped}").search_experiments(max_results=1)
        aside.replace(database)


def _half_made(database: Path) -> bool:
    """Whether a database holds no run and has not all of MLflow's tables in their newest form."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            if connection.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
                return False
            form = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        return "no such table" in str(error)
    except sqlite3.DatabaseError:
        return False  # of another kind: MLflow says what it is
    return form is None or form[0] != _get_latest_schema_revision()


def dataset(name: str, digest: str, context: str) -> DatasetInput:
    """A folder of data/ as an input of a run; ``digest`` is DVC's and Dagster's name for the same bytes."""
    data = Dataset(name=name, digest=digest, source_type="local", source=json.dumps({"uri": f"data/{name}"}))
    return DatasetInput(data, [InputTag("mlflow.data.context", context)])


def author(command: str, paths: Paths) -> dict[str, str]:
    """Tags for who made a run, by which command and in which home; all but the last are MLflow's own."""
    user = os.environ.get("USER", "")
    named = {"mlflow.user": user, "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    return {**named, HOME: f"{socket.gethostname()}:{paths.home}"}


def end_killed(
    store: MlflowClient, experiment: str, config: Config, by: Mapping[str, str], but: str | None = None
) -> None:
    """End, as KILLED, the runs that killed processes left RUNNING, ``but`` for one. ``by``: tags of the runs' author.

    Of a store that homes share, other homes' runs stay: they may be at work.
    """
    known = ["mlflow.source.name", "paradigm", *([HOME] if config.tracking.uri else [])]
    tags = {name: by[name] for name in known if name in by}
    for run in store.search_runs([experiment], "attributes.status = 'RUNNING'"):
        if run.info.run_id != but and tags.items() <= run.data.tags.items():
            store.set_tag(run.info.run_id, "error", "its process was killed")
            store.set_terminated(run.info.run_id, "KILLED")


def tagged(store: MlflowClient, experiment: str, tag: tuple[str, str], name: str, more: Mapping[str, str]) -> Run:
    """The experiment's run with ``tag`` (name, value); where there is none, a new one with ``more`` tags besides."""
    found = store.search_runs([experiment], f"tags.`{tag[0]}` = '{tag[1]}'", max_results=1)
    return found[0] if found else store.create_run(experiment, run_name=name, tags=dict([tag], **more))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to ``section.key``; lists and scalars stay as they are."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def readable(value: float) -> float:
    """A figure in the digits that a person reads, since MLflow's tables show all that there are: four decimals up to
    10, four digits up to 10,000 and of figures below 0.01, whole numbers above."""
    size = abs(value)
    if 0.01 <= size < 10:
        return float(round(value, 4))
    return float(round(value) if 10_000 <= size < math.inf else f"{value:.4g}")
