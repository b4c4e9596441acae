"""The curves of an evaluation, written and read as CSV in the shape `dvc plots` draws."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dti_pipeline.evaluation.metrics import Bin


@dataclass(frozen=True)
class LearningPoint:
    """One scoring of the validation targets during training."""

    train_seconds: float  # without warm-up, evaluation and checkpoints
    targets_seen: int
    auc: float


@dataclass(frozen=True)
class Curves:
    """The curves of one paradigm, or of a floor (which has no learning curve)."""

    roc: list[tuple[float, float]]  # false and true positive rate
    calibration: list[Bin]
    learning: list[LearningPoint] = field(default_factory=list)
    train_seconds: float | None = None  # at the end
    auc: float | None = None  # of the evaluated targets

    def tables(self) -> dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
        """File name to header and lines."""
        return {
            "roc.csv": (("fpr", "tpr"), list(self.roc)),
            "calibration.csv": (
                ("predicted", "observed", "count"),
                [(b.predicted, b.observed, b.count) for b in self.calibration],
            ),
            "learning_curve.csv": (
                ("train_seconds", "targets_seen", "val_auc"),
                [(p.train_seconds, p.targets_seen, p.auc) for p in self.learning],
            ),
        }

    def write(self, folder: Path) -> None:
        """roc.csv, calibration.csv and learning_curve.csv."""
        for name, (header, lines) in self.tables().items():
            write_csv(folder / name, header, lines)


def read(folder: Path, train_seconds: float, auc: float | None) -> Curves:
    """The curves that :meth:`Curves.write` wrote into ``folder``."""
    return Curves(
        roc=[(float(p["fpr"]), float(p["tpr"])) for p in _lines(folder / "roc.csv")],
        calibration=[
            Bin(float(p["predicted"]), float(p["observed"]), int(p["count"]))
            for p in _lines(folder / "calibration.csv")
        ],
        learning=[
            LearningPoint(float(p["train_seconds"]), int(p["targets_seen"]), float(p["val_auc"]))
            for p in _lines(folder / "learning_curve.csv")
        ],
        train_seconds=train_seconds,
        auc=auc,
    )


def write_joined(folder: Path, curves: dict[str, Curves]) -> None:
    """The curves of several paradigms side by side: the same files with the paradigm as first column."""
    joined: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {}
    for paradigm, one in curves.items():
        for name, (header, lines) in one.tables().items():
            joined.setdefault(name, (("paradigm", *header), []))[1].extend((paradigm, *line) for line in lines)
    for name, (header, lines) in joined.items():
        write_csv(folder / name, header, lines)


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """One header line, Unix line ends, floats to 6 digits: enough to draw, and small in a diff."""
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{v:.6g}" if isinstance(v, float) else v for v in line] for line in lines)


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))
