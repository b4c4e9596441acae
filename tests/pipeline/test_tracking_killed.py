"""What a killed process leaves in MLflow's store is mended by the next one, and no password is printed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from mlflow.exceptions import MlflowException

from dti_pipeline import config, tracking
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import mlflow_store

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
