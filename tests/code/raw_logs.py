"""Small raw logs for the tests of ingestion: how they are configured, and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from dti_pipeline.config import Config, from_plain
from dti_pipeline.events.report import IngestReport
from dti_pipeline.paths import Paths

HEADER = "user_id,item_id,rating,timestamp"


def settings(path: Path | str, source: str = "table", split: dict[str, Any] | None = None, **events: Any) -> Config:
    split = {"rule": "user_order", "min_history": 0} | (split or {})
    return from_plain(Config, {"events": {"source": source, "path": str(path), **events}, "split": split})


def rows(paths: Paths, columns: str = "*", rest: str = "") -> list[tuple[Any, ...]]:
    return duckdb.sql(f"SELECT {columns} FROM '{paths.events}/interactions.parquet' {rest}").fetchall()


def quarantine(paths: Paths) -> list[tuple[str, int, str, str]]:
    return duckdb.sql(f"FROM '{paths.events}/quarantine.parquet'").fetchall()


def adds_up(report: IngestReport) -> bool:
    return report.read == report.kept + report.quarantined + report.duplicates
