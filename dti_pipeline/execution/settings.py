"""Section of params.yaml about the processes that work on a log's parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dti_pipeline.plain import NonNegativeInt, PositiveFloat, PositiveInt, require


@dataclass(frozen=True)
class ExecutionConfig:
    """Where the parts of a log are worked on: its files, its buckets, its blocks of users. No output depends on it."""

    # local: processes of this machine. ray: tasks of a Ray cluster, which needs `pip install dti-pipeline[ray]`.
    engine: Literal["local", "ray"] = "local"
    # Tasks at a time, one processor each. local: 1 is this very process. ray: of a Ray that is started here; a cluster
    # has its own number.
    workers: PositiveInt = 1
    # ray: a cluster that runs, such as auto or HOST:6379; null: one on this machine, started and ended with the stage.
    address: str | None = None
    retries: NonNegativeInt = 2  # times that a task is tried again whose process has died
    # Memory of a task, GiB: DuckDB spills beyond three quarters of it, and Ray sets it aside. 1 worker of local: see
    # events.memory_limit.
    memory_gib: PositiveFloat = 2.0

    def __post_init__(self) -> None:
        fits = self.engine == "ray" or self.address is None
        require(fits, "execution.address", "null where execution.engine is local", self.address)
