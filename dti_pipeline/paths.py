"""The only place that knows folder names.

Everything a project makes lives under one home (``DTI_HOME``, default: the working directory),
so that two projects, or two tests, never meet.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """Folders of one project home. Properties only: nothing is created by asking for a path."""

    home: Path

    @classmethod
    def from_env(cls) -> Paths:
        return cls(Path(os.environ.get("DTI_HOME") or ".").resolve())

    def resolve(self, path: str | Path) -> Path:
        """A path from params.yaml: absolute as it is, relative to the home."""
        return self.home / Path(path).expanduser()

    @property
    def params(self) -> Path:
        return self.home / "params.yaml"

    @property
    def raw(self) -> Path:
        """Logs as their owners publish them; never changed, one folder each."""
        return self.home / "data" / "raw"

    @property
    def synthetic(self) -> Path:
        return self.raw / "synthetic"

    @property
    def staged(self) -> Path:
        """One parsed Parquet file for each raw file, named by its digest."""
        return self.home / "data" / "staged"

    @property
    def events(self) -> Path:
        return self.home / "data" / "events"

    @property
    def checks(self) -> Path:
        return self.home / "data" / "checks"

    @property
    def accepted(self) -> Path:
        """Profile of the batch that last passed validation: what drift is measured against."""
        return self.home / "data" / "accepted.json"

    @property
    def tokens(self) -> Path:
        return self.home / "data" / "tokens"

    def shards(self, paradigm: str) -> Path:
        return self.home / "data" / "shards" / paradigm

    def model(self, paradigm: str) -> Path:
        return self.home / "models" / paradigm

    def checkpoints(self, paradigm: str) -> Path:
        """Resume state of a training that has not finished; outside every versioned output."""
        return self.home / "models" / ".checkpoints" / paradigm

    @property
    def registry(self) -> Path:
        """Models downloaded from a registry elsewhere, each in a folder named by its id."""
        return self.home / "models" / ".registry"

    @property
    def reports(self) -> Path:
        return self.home / "reports"

    @property
    def data_docs(self) -> Path:
        return self.reports / "data_docs"

    def evaluation(self, paradigm: str) -> Path:
        return self.reports / "evaluation" / paradigm

    @property
    def comparison(self) -> Path:
        """Folder of the comparison's plots; the tables stand beside it as comparison.{json,md,html}."""
        return self.reports / "comparison"

    def comparison_file(self, suffix: str) -> Path:
        return self.reports / f"comparison.{suffix}"

    @property
    def study(self) -> Path:
        """Working folder of ``dti study``: a home for each of its logs, and a folder for each of its runs."""
        return self.home / "study"

    @property
    def tracking_uri(self) -> str:
        """MLflow's SQLite store. SQLite on purpose: MLflow's file store is deprecated and slow to search."""
        return f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.home / "mlartifacts"
