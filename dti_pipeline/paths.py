"""Files and folders of a project: all it makes lives under one home, ``DTI_HOME`` or the working directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


class Place:
    """An attribute that is a path below the home of the object that has it. Asking for it creates nothing."""

    def __init__(self, below: str) -> None:
        self.below = below

    def __get__(self, paths: Paths, owner: type[Paths]) -> Path:
        return paths.home / self.below


@dataclass(frozen=True)
class Paths:
    """Files and folders of one project home."""

    home: Path

    params = Place("params.yaml")
    raw = Place("data/raw")  # logs as their owners publish them; never changed, one folder each
    remote = Place("data/raw/.remote")  # copies of logs in an S3-compatible store, by bucket and key
    synthetic = Place("data/raw/synthetic")
    staged = Place("data/staged")  # one parsed Parquet file for each raw file, named by its digest
    events = Place("data/events")
    checks = Place("data/checks")
    accepted = Place("data/accepted.json")  # profile of the batch that last passed validation, for drift
    tokens = Place("data/tokens")
    registry = Place(
        "models/.registry"
    )  # models downloaded from a registry elsewhere, each in a folder named by its id
    item_states = Place("models/.items")  # of served models, each in a folder named by the model's digest
    reports = Place("reports")
    data_docs = Place("reports/data_docs")
    comparison = Place("reports/comparison")  # its plots; the tables stand beside it as comparison.{json,md,html}
    compiled = Place(".cache/compiler")  # what torch and Triton have compiled, for the next start
    study = Place("study")  # of ``dti study``: a home for each of its logs, a folder for each of its runs
    reproduced = Place("reproduced")  # runs that were made again, a home each
    mlflow_artifacts = Place("mlartifacts")

    @classmethod
    def from_env(cls) -> Paths:
        return cls(Path(os.environ.get("DTI_HOME") or ".").resolve())

    def resolve(self, path: str | Path) -> Path:
        """A path from params.yaml: absolute as it is, relative to the home; of an address, where its copy is."""
        if str(path).startswith("s3://"):
            return self.remote / str(path).removeprefix("s3://")
        return self.home / Path(path).expanduser()

    def shards(self, paradigm: str) -> Path:
        return self.home / "data" / "shards" / paradigm

    def model(self, paradigm: str) -> Path:
        return self.home / "models" / paradigm

    def checkpoints(self, paradigm: str) -> Path:
        """Resume state of a training that has not finished; outside every versioned output."""
        return self.home / "models" / ".checkpoints" / paradigm

    def evaluation(self, paradigm: str) -> Path:
        return self.reports / "evaluation" / paradigm

    def certificate(self, paradigm: str, digest: str) -> Path:
        """Of the model with this digest, wherever its folder lies."""
        return self.reports / "certificates" / f"{paradigm}-{digest[:12]}"

    def backtest(self, paradigm: str) -> Path:
        return self.reports / "backtest" / paradigm

    def backtest_states(self, paradigm: str) -> Path:
        """The days that a backtest has finished, with their weights; outside every versioned output."""
        return self.home / "models" / ".backtest" / paradigm

    def comparison_file(self, suffix: str) -> Path:
        return self.reports / f"comparison.{suffix}"

    def comparison_links(self) -> dict[Path, Path]:
        """The comparison's tables, beside its folder: where each link lies, and what it leads to from there."""
        links = [self.comparison_file(suffix) for suffix in ("json", "md", "html")]
        return {link: Path(self.comparison.name, link.name) for link in links}

    @property
    def tracking_uri(self) -> str:
        """MLflow's SQLite store: its file store is deprecated and slow to search. In a URI ``?`` ends the path."""
        path = str(self.home / "mlflow.db").replace("%", "%25").replace("?", "%3F")
        return f"sqlite:///{path}"
