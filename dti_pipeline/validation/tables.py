"""The Parquet files of one batch as read-only SQL tables, out of core.

Great Expectations gets only counts, figures and a few rows: any log is checked within ``events.memory_limit``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pandas

from dti_pipeline.artifacts import Manifest
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events import published
from dti_pipeline.events.database import connect, literal, parquet_files
from dti_pipeline.events.report import IngestReport, LoadReport, LogCounts
from dti_pipeline.events.staging import is_whole
from dti_pipeline.paths import Paths

_DIGEST = 16  # characters of a raw file's digest that open the name of its part


@dataclass(frozen=True)
class Tables:
    """Named views on one in-memory connection."""

    connection: duckdb.DuckDBPyConnection
    shown: int  # rows that stand for all that a query finds
    refused: list[duckdb.Error] = field(default_factory=list)  # what the machine refused: no fault of the log
    counted: dict[str, int] = field(default_factory=dict)  # rows of queries that were counted elsewhere

    def types(self, name: str) -> dict[str, str]:
        """Column names of a view, in order, with their SQL types."""
        return {row[0]: row[1] for row in self.connection.execute(f"DESCRIBE {name}").fetchall()}

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            self.refused.append(error)
            raise

    def count(self, query: str) -> int:
        """Rows that a query returns."""
        if query in self.counted:
            return self.counted[query]
        with self._noted():
            answer = self.connection.execute(f"SELECT count(*) FROM ({query})").fetchone()
        assert answer is not None
        return int(answer[0])

    def rows(self, query: str) -> list[dict[str, Any]]:
        """The first ``shown`` rows by value, as plain dicts that JSON can hold."""
        with self._noted():
            cursor = self.connection.execute(f"SELECT * FROM ({query}) ORDER BY ALL LIMIT {self.shown}")
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, map(_plain, row), strict=True)) for row in cursor.fetchall()]

    def frame(self, query: str) -> pandas.DataFrame:
        """A query's answer as a frame. Only for answers of a few rows."""
        with self._noted():
            return self.connection.execute(query).df()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def source_names(parts: Iterable[Path], source_files: Mapping[str, str]) -> dict[str, str]:
    """Name of the raw file that each staged part was parsed from, by name of the part; one for files that are equal."""
    by_digest = {md5[:_DIGEST]: name for name, md5 in source_files.items()}
    return {part.name: by_digest.get(part.name[:_DIGEST], part.name) for part in parts}


@dataclass(frozen=True)
class Batch:
    """What is checked at a time: a log, or a load of it."""

    number: int
    ledger: LogCounts
    interactions: Path
    parts: tuple[Path, ...]  # staged
    source_files: Mapping[str, str]  # digest of each raw file, by name

    @property
    def name(self) -> str | None:
        """Of a load."""
        return self.ledger.name if isinstance(self.ledger, LoadReport) else None


def batches(events: Manifest[IngestReport], paths: Paths) -> list[Batch]:
    """The loads of a log, or the log as one. Raises InputError for a staged part that is damaged."""
    for part in sorted(paths.staged.rglob("*.parquet")):
        if not is_whole(part):
            raise InputError(f"{part} is damaged: its content is not what was written: run `dti ingest` again")
    staged = sorted(paths.staged.glob("*.parquet"))
    digests = {name.removeprefix("log/"): md5 for name, md5 in events.inputs.items() if name.startswith("log/")}
    files = published.interactions(events.path)
    if events.report.loads is None:
        return [Batch(0, events.report, files[0], tuple(staged), digests)]
    found = []
    for number, (load, path) in enumerate(zip(events.report.loads, files, strict=True)):
        own = {name: digests[name] for name in load.files}
        beginnings = {md5[:_DIGEST] for md5 in own.values()}
        parts = tuple(part for part in staged if part.name[:_DIGEST] in beginnings)
        found.append(Batch(number, load, path, parts, own))
    return found


@contextmanager
def open_tables(config: Config, paths: Paths, batch: Batch) -> Iterator[Tables]:
    """``staged`` over the parts of a batch, ``parsed`` (the same and ``source_file``) and ``interactions``.

    A part's name begins with the digest of the file it was parsed from. Raises InputError naming what cannot be read.
    """
    interactions, found = batch.interactions, batch.parts
    with connect(config.events.memory_limit, paths.checks.parent) as connection:
        parts = parquet_files(*found, filename=True)
        try:
            connection.execute(f"CREATE VIEW interactions AS FROM {parquet_files(interactions)}")
            connection.execute(f"CREATE VIEW staged AS SELECT * EXCLUDE (filename) FROM {parts}")
        except duckdb.Error as error:
            raise InputError(f"{interactions} or {paths.staged} is not whole: run `dti ingest` again") from error
        names = source_names(found, batch.source_files)
        keys, values = (f"[{', '.join(map(literal, column))}]::VARCHAR[]" for column in (names, names.values()))
        connection.execute(
            f"CREATE VIEW parsed AS SELECT map({keys}, {values})[parse_filename(filename)] AS source_file,"
            f" * EXCLUDE (filename) FROM {parts}"
        )
        yield Tables(connection, config.validation.max_shown_rows)
