"""Reports of a run that was made again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Recorded:
    """A training as its run has it."""

    run_id: str
    record: dict[str, Any]  # record.json
    metrics: dict[str, float]  # of its evaluation, by split and name; {}: it was not judged
    model: Path  # folder of its model in the registry
    evaluated_by: int | None = None  # threads of a CPU that computed the scores; None: not known


@dataclass(frozen=True)
class Compared:
    """One thing of the run, then and now."""

    part: Literal["made with", "data", "weights", "training", "metrics"]
    name: str
    then: str
    now: str
    difference: float | None  # largest, of numbers
    equal: bool

    @property
    def counts(self) -> bool:
        """Whether the run is not reproduced where this is not equal; what it was made with explains a difference."""
        return self.part != "made with"


@dataclass(frozen=True)
class Reproduction:
    """A run that was made again."""

    run_id: str
    paradigm: str
    equal: bool
    sentence: str
    made_from: str  # raw log or events, and where they lay
    folder: str  # the home that it was made in
    compared: tuple[Compared, ...]
