"""The curves of an evaluation, written and read as CSV in the shape `dvc plots` draws."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from dti_pipeline.evaluation.metrics import Bin, Rates


@dataclass(frozen=True)
class LearningPoint:
    """One scoring of the validation targets during training."""

    train_seconds: float  # without warm-up, evaluation and checkpoints
    targets_seen: int
    val_auc: float


#: The files of an evaluation folder, and the class of their lines; its fields are the columns.
FILES: dict[str, type[Any]] = {"roc.csv": Rates, "calibration.csv": Bin, "learning_curve.csv": LearningPoint}


@dataclass(frozen=True)
class Curves:
    """What is drawn of one paradigm."""

    roc: list[Rates]
    calibration: list[Bin]
    learning: list[LearningPoint]
    train_seconds: float  # at the end
    auc: float | None  # of the evaluated targets

    def lines(self) -> dict[str, list[tuple[Any, ...]]]:
        """The lines of each of ``FILES``."""
        drawn: tuple[list[Any], ...] = (self.roc, self.calibration, self.learning)
        return {name: [astuple(point) for point in points] for name, points in zip(FILES, drawn, strict=True)}

    def write(self, folder: Path) -> None:
        """One CSV file for each of ``FILES``."""
        for name, lines in self.lines().items():
            write_csv(folder / name, _columns(name), lines)


def read(folder: Path, train_seconds: float, auc: float | None) -> Curves:
    """The curves that :meth:`Curves.write` wrote into ``folder``."""
    roc, calibration, learning = (read_csv(folder / name, kind) for name, kind in FILES.items())
    return Curves(roc, calibration, learning, train_seconds, auc)


def write_joined(folder: Path, curves: Mapping[str, Curves]) -> None:
    """The curves of several paradigms side by side: the same files with the paradigm as first column."""
    for name in FILES:
        lines = [(paradigm, *line) for paradigm, one in curves.items() for line in one.lines()[name]]
        write_csv(folder / name, ("paradigm", *_columns(name)), lines)


def _columns(name: str) -> list[str]:
    return [field.name for field in fields(FILES[name])]


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """One header line, Unix line ends, floats to 6 digits: enough to draw, and small in a diff."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in line] for line in lines)


def read_csv(path: Path, kind: type[Any]) -> list[Any]:
    """The lines as objects of ``kind``, from the columns of its names; lines where one is empty are left out."""
    columns = get_type_hints(kind)
    with path.open(newline="", encoding="utf-8") as handle:
        return [
            kind(*(convert(line[name]) for name, convert in columns.items()))
            for line in csv.DictReader(handle)
            if all(line[name] for name in columns)
        ]
