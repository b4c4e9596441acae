"""A stage's report as what Dagster shows: figures it can plot, tables, pictures, the link to the tracked run."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

#: Where links to MLflow point, unless DTI_MLFLOW_URL says otherwise: the address of `mlflow ui`.
MLFLOW_URL = "http://127.0.0.1:5000"


def describe(report: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Metadata of a materialisation, figures first."""
    shown: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for name, value in report.items():
        if name == "mlflow_run_id" and value is not None:
            url = os.environ.get("DTI_MLFLOW_URL") or MLFLOW_URL
            shown["mlflow_run"] = dg.MetadataValue.url(f"{url}/#/runs/{value}")
        elif isinstance(value, (bool, int, float, str)):
            shown[name] = value
        elif isinstance(value, Mapping) and value:
            tables[name] = table(_rows(value))
        elif isinstance(value, Sequence) and value and all(isinstance(row, Mapping) for row in value):
            tables[name] = table(value)
    pictures = {picture.stem: _picture(picture) for picture in sorted(output.glob("*.png"))}
    return {**shown, **pictures, **tables, "path": dg.MetadataValue.path(str(output))}


def table(rows: Sequence[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table, columns in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _rows(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A mapping of mappings has a line for each; one of plain values is a single line."""
    if all(isinstance(inner, Mapping) for inner in value.values()):
        return [{"": name, **inner} for name, inner in value.items()]
    return [dict(value)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")


def _picture(path: Path) -> dg.MarkdownMetadataValue:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return dg.MetadataValue.md(f"![{path.stem}](data:image/png;base64,{encoded})")
