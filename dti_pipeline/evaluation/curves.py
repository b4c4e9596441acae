"""The curves of an evaluation, written and read as CSV in the shape `dvc plots` draws."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Columns = Mapping[str, Callable[[str], Any]]
#: Columns of the curves' CSV files in an evaluation folder, by the files' names, and the types of their values. Seconds
#: of a learning curve are without warm-up, evaluation and checkpoints.
COLUMNS: dict[str, Columns] = {
    "roc": {"fpr": float, "tpr": float},
    "calibration": {"predicted": float, "observed": float, "count": int},
    "learning_curve": {"train_seconds": float, "targets_seen": int, "val_auc": float},
}


@dataclass(frozen=True)
class Curves:
    """What is drawn of one paradigm."""

    points: dict[str, list[tuple[Any, ...]]]  # by name in COLUMNS, a value a column
    train_seconds: float  # at the end
    auc: float | None  # of the evaluated targets

    def write(self, folder: Path) -> None:
        """A CSV file for each curve."""
        for name, columns in COLUMNS.items():
            write_csv(folder / f"{name}.csv", list(columns), self.points[name])


def read(folder: Path, train_seconds: float, auc: float | None) -> Curves:
    """The curves that :meth:`Curves.write` wrote into ``folder``."""
    points = {name: read_csv(folder / f"{name}.csv", columns) for name, columns in COLUMNS.items()}
    return Curves(points, train_seconds, auc)


def write_joined(folder: Path, curves: Mapping[str, Curves]) -> None:
    """The curves of several paradigms side by side: the same files with the paradigm as first column."""
    for name, columns in COLUMNS.items():
        lines = [(paradigm, *point) for paradigm, one in curves.items() for point in one.points[name]]
        write_csv(folder / f"{name}.csv", ["paradigm", *columns], lines)


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """One header line, Unix line ends, floats to 6 digits: enough to draw, and small in a diff."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in line] for line in lines)


def read_csv(path: Path, columns: Columns) -> list[tuple[Any, ...]]:
    """Those columns of every line; lines where one of them is empty are left out."""
    with path.open(newline="", encoding="utf-8") as handle:
        lines = [line for line in csv.DictReader(handle) if all(line[name] for name in columns)]
    return [tuple(convert(line[name]) for name, convert in columns.items()) for line in lines]
