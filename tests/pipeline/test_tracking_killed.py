"""What a killed process leaves in MLflow's store is mended by the next one, and no password is printed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dti_pipeline import config, tracking
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import mlflow_store, registry
from dti_pipeline.training.progress import Finished
from tests import reports
from tests.pipeline.recorded import TOTAL, publish_model, settings, started, store, train

KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
import sqlalchemy
from dti_pipeline import config
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import mlflow_store

made = []

@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "before_cursor_execute")
def count(connection, cursor, statement, *rest):
    made.append("CREATE TABLE" in statement)
    if sum(made) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

paths = Paths(Path(sys.argv[1]))
mlflow_store.connect(config.load(paths.params), paths)
"""


def test_a_database_whose_making_was_killed_is_made_again(home: Paths) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(home.home), "9"], check=False, env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    database = home.home / "mlflow.db"
    assert not database.exists(), "half of one never stands in its place"
    with closing(sqlite3.connect(database)) as half:  # as a version without that care left it
        half.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        half.execute("CREATE TABLE runs (run_uuid VARCHAR)")
        half.commit()
    settings = config.load(home.params)
    store, experiment = mlflow_store.connect(settings, home)
    run = store.create_run(experiment)
    again, same = mlflow_store.connect(settings, home)
    assert same == experiment
    assert again.get_run(run.info.run_id).info.status == "RUNNING", "a database that holds a run stays"
    assert [path.name for path in home.home.glob("mlflow.db*")] == ["mlflow.db"]


def test_a_password_in_the_address_is_not_printed(home: Paths) -> None:
    with pytest.raises(InputError) as refused, tracking._mlflow():
        raise MlflowException("request to https://user:secret@example.org/api failed")
    assert "secret" not in str(refused.value)
    assert "https://***@example.org/api" in str(refused.value)


def open_run(home: Paths, experiment: str, where: Paths, command: str = "dti train") -> str:
    """A run as a killed process of ``where`` leaves it."""
    tags = {"paradigm": "dti", **mlflow_store.author(command, where)}
    return store(home).create_run(experiment, tags=tags).info.run_id


@pytest.mark.parametrize("shared", [False, True])
def test_a_run_that_a_kill_left_running_ends_when_the_next_training_starts(tracked: Paths, shared: bool) -> None:
    """In a store that homes share, another home's run may be at work: it stays."""
    told = [f"tracking.uri={tracked.tracking_uri}"] if shared else []
    settings = config.load(tracked.params, told)
    _, experiment = mlflow_store.connect(settings, tracked)
    own = open_run(tracked, experiment, tracked)
    elsewhere = open_run(tracked, experiment, Paths(tracked.home / "elsewhere"))
    compared = open_run(tracked, experiment, tracked, "dti compare")
    with tracking.listener(settings, tracked, {}) as listen:
        goes_on = listen(started(run_id=open_run(tracked, experiment, tracked)))
        status = {run: store(tracked).get_run(run).info.status for run in (own, elsewhere, compared, goes_on)}
    assert status == {
        own: "KILLED", elsewhere: "RUNNING" if shared else "KILLED", compared: "RUNNING", goes_on: "RUNNING",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("point", "kept"),
    [
        ("finalize_logged_model", False),
        ("log_outputs", True),
        ("create_model_version", True),
        ("set_registered_model_alias", True),
    ],
)
def test_a_model_whose_registration_was_killed_is_logged_once(
    tracked: Paths, monkeypatch: pytest.MonkeyPatch, point: str, kept: bool
) -> None:
    """A kill before a call of MLflow's. Half a logged model goes, a whole one becomes the version."""

    class Killed(BaseException):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched, suppress(Killed):
        patched.setattr(MlflowClient, point, killed)
        train(tracked)
    experiment = store(tracked).get_experiment_by_name("dti").experiment_id
    (run,) = store(tracked).search_runs([experiment])
    (logged,) = store(tracked).search_logged_models([experiment])
    for _ in range(2):
        version = registry.register(store(tracked), settings(tracked), tracked.model("dti"), run)
    (found,) = store(tracked).search_logged_models([experiment])
    assert (found.model_id == logged.model_id) == kept
    assert found.status == "READY"
    assert (version.source, str(version.version)) == (f"models:/{found.model_id}", "1")
    assert json.loads(found.tags["mlflow.modelVersions"]) == [{"name": "dti", "version": version.version}]
    outputs = store(tracked).get_run(run.info.run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [found.model_id]


def test_an_experiment_whose_name_has_quotes_is_one_like_any_other(tracked: Paths) -> None:
    named = config.load(tracked.params, ['tracking.experiment=Ann\'s "best" `runs`'])
    with tracking.listener(named, tracked, {}) as listen:
        run = listen(started())
        publish_model(tracked, "dti", run)
        listen(Finished(TOTAL, 20.5, replace(reports.TRAIN, paradigm="dti", mlflow_run_id=run)))
    assert run is not None
    assert store(tracked).get_run(run).info.status == "FINISHED"
    version = store(tracked).get_model_version_by_alias(named.tracking.experiment, "dti")
    assert version.run_id == run
