"""A home whose runs are recorded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dti_pipeline.paths import Paths


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
