"""What is made of the rows: what stands beside other rows, tables, pictures, and their record in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dti_pipeline import artifacts, tracking
from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.study import pictures, rows, tables
from dti_pipeline.study.grid import Grid


def report(grid: Grid, work: Path, config: Config, paths: Paths) -> dict[str, Any]:
    """Write the results file, the document's tables and the pictures anew; record them where ``tracking.enabled``.

    Everything but intervals, and floors of logs that no row has, comes from the results file: a clone without the runs
    makes the same document.
    """
    gathered = rows.gather(grid, work)
    rows.derive(grid, gathered, work)
    rows.write(grid, gathered)
    drawn: list[str] = []
    if grid.pictures:
        drawn = pictures.draw_all(grid, gathered, grid.beside(grid.pictures))
    if grid.document and grid.beside(grid.document).is_file():
        path = grid.beside(grid.document)
        artifacts.write_text(path, tables.document(grid, gathered, path.read_text(encoding="utf-8")))
    tracking.record_study(config, paths, grid, gathered)
    return {
        "results": grid.results,
        "rows": sum("error" not in row for row in gathered),
        "failed": sum("error" in row for row in gathered),
        "missing": len(grid.runs) - len({run.digest for run in grid.runs} & {row["config"] for row in gathered}),
        "pictures": drawn,
    }
