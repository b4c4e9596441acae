"""What is made of the rows: what stands beside other rows, tables, pictures, and their record in MLflow."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from dti_pipeline import artifacts, tracking
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.plain import nearest
from dti_pipeline.study import pictures, rows, tables
from dti_pipeline.study.grid import Grid

#: What a document asks for: the table of a group, its AUC by history length, a picture.
MARKED = re.compile(r"(<!-- (?P<kind>study|histories|figure): (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


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
        artifacts.write_text(path, document(grid, gathered, path.read_text(encoding="utf-8")))
    tracking.record_study(
        config, paths, [row | _timed(row, gathered) for row in gathered],
        lambda own, group: tables.group_tables(grid, own, group).strip(), _attached(grid),
    )  # fmt: skip
    return {
        "results": grid.results,
        "rows": sum("error" not in row for row in gathered),
        "errors": sum("error" in row for row in gathered),
        "missing": len(grid.runs) - len({run.digest for run in grid.runs} & {row["config"] for row in gathered}),
        "pictures": drawn,
    }


def _timed(row: rows.Row, gathered: list[rows.Row]) -> rows.Row:
    """Seconds and speeds for a record that people sort by: of a run with others beside it those of the same work alone,
    as in the tables, or none."""
    if rows.alone(row) or "error" in row:
        return {}
    took = rows.seconds(row, gathered)
    speeds = {f"{what}_per_second": round(row[what] / took, 1) if took else None for what in ("targets", "tokens")}
    return {"train_seconds": round(took, 3) if took else None, **speeds}


def _attached(grid: Grid) -> dict[str, list[Path]]:
    """Files for each group's record, by the folder they go into; "": none."""
    drawn = sorted(grid.beside(grid.pictures).glob("study_*")) if grid.pictures else []
    return {"": [grid.beside(grid.results)], "pictures": drawn}


def document(grid: Grid, gathered: list[rows.Row], text: str) -> str:
    """The text with everything between its markers made anew. InputError where one names nothing of the study."""

    def part(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"]
        known = list(pictures.DRAWINGS) if kind == "figure" else [*grid.group_names, *grid.others]
        if name not in known:
            raise InputError(f"{grid.document} asks for {kind} {name!r}, none of the study's{nearest(name, known)}")
        if kind == "figure":
            made = _picture(grid, name)
        else:
            made = {"study": tables.group_tables, "histories": tables.history_tables}[kind](grid, gathered, name)
        return f"{match[1]}{made}{match[4]}"

    return MARKED.sub(part, text)


def _picture(grid: Grid, name: str) -> str:
    path = grid.beside(grid.pictures or "") / f"study_{name}.svg"
    if not grid.pictures or not grid.document or not path.is_file():
        return "\nNot drawn yet.\n\n"
    said = (pictures.DRAWINGS[name].__doc__ or "").splitlines()[0].rstrip(".")
    return f"\n![{said}]({os.path.relpath(path, grid.beside(grid.document).parent)})\n\n"
