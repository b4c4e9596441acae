"""The results of a study as a flat file: one row for each evaluated run, for tables that others make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from dti_pipeline import artifacts
from experiments import analyse
from experiments.analyse import Row
from experiments.grid import Grid

#: Columns that a row has as the study's own row has them; null where that has none.
KEPT = (
    "paradigm", "k", "n", "fixes", "delay", "share", "seed", "epochs", "auc", "auc_streaming", "uauc", "log_loss",
    "auc_by_item", "hardware", "commit", "command",
)  # fmt: skip


def rows_of(grid: Grid, rows: Sequence[Row]) -> Iterator[Row]:
    """The evaluated rows: ``dataset`` is the log's own name, ``model`` the recipe's model.

    ``train_seconds`` and ``speedup`` rest on trainings that had the card to themselves, the run's own or others of the
    same work; null where there are none. ``published_split``: training and test rows are those of a publication.
    """
    for row in rows:
        if row.get("auc") is None or row["dataset"] not in grid.data_sets:
            continue
        data_set = grid.data_sets[row["dataset"]]
        model = " ".join(name for name in (data_set.model, row["model"]) if name)
        took = analyse.seconds(row, rows)
        yield {
            "dataset": data_set.log or row["dataset"], "model": model, **{name: row.get(name) for name in KEPT},
            "train_seconds": None if took is None else round(took, 3), "speedup": row.get("speedup"),
            "published_split": row["split"] == "column",
        }  # fmt: skip


def write(grid: Grid, rows: Sequence[Row]) -> None:
    """Write the grid's ``flat`` file, where it names one and a run was evaluated."""
    if grid.flat and (found := list(rows_of(grid, rows))):
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in found)
        artifacts.write_text(grid.beside(grid.flat), f"[\n{lines}\n]\n")
