"""What several of these tests start from: a home whose runs are recorded, an asset graph whose stages cost nothing, a
project after `make demo`, the log of a study."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from mlflow import MlflowClient

from dti_pipeline.defs import training
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import TRAIN, Stage
from dti_pipeline.tracking import mlflow_evaluation, registry
from experiments import schedule
from tests import small
from tests.pipeline import studies
from tests.pipeline.stand_ins import Stages
from tests.project import Project


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs. Making one walks through every version of MLflow's schema: once for all tests."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def tracked(home: Paths, empty_store: Path) -> Paths:
    """A home with an empty store."""
    shutil.copy(empty_store, home.home / "mlflow.db")
    return home


@pytest.fixture(scope="session")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A project after `make demo`, and what it printed. For reading: a test that changes it works on a copy."""
    with once(tmp_path_factory, "demo") as home:
        printed = home.with_suffix(".txt")
        if not printed.exists():
            printed.write_text(Project(home).run(sys.executable, "-m", "dti_pipeline.defs.demo"))
    return Project.at(home), printed.read_text()


@pytest.fixture(scope="session")
def small_home(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home after every stage of the small pipeline, without a record. For reading: a test changes a copy."""
    with once(tmp_path_factory, "small") as home:
        if not (home / "reports" / "comparison").exists():
            small.make(Paths(home))
    return Paths(home)


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a study whose log is prepared and of which nothing was run. For copying."""
    with once(tmp_path_factory, "study_logs") as folder:
        work = folder / "study"
        if not work.exists():
            grid = studies.study(folder / "file")
            schedule.prepare(grid, work, grid.runs, {}, Paths(folder))
    return work


@contextmanager
def once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder for all workers of a run, empty for the first that needs it; the others wait until it has made it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(exist_ok=True)
        yield folder


@pytest.fixture
def stages(home: Paths, monkeypatch: pytest.MonkeyPatch) -> Stages:
    fake = Stages()

    def run(stage: Stage[Any], *arguments: Any) -> Any:
        return fake.run(stage, *arguments)

    monkeypatch.setattr(Stage, "run", run)
    monkeypatch.setattr(training, "run", lambda _c, _p, work, p: fake.run(TRAIN, work.config, work.paths, p))
    monkeypatch.setattr(mlflow_evaluation, "record_evaluation", lambda *_: None)
    monkeypatch.setattr(mlflow_evaluation, "record_comparison", lambda *_: None)
    monkeypatch.setattr(registry, "promote", lambda *_: None)
    return fake


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """Dagster's records in memory: making them on disk takes longer than most tests here."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance
