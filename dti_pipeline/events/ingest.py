"""Raw log to canonical interactions: ordered, labelled, split, and every row accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events.database import connect, run_script, write_parquet
from dti_pipeline.events.report import FileCounts, IngestReport, SplitCounts
from dti_pipeline.events.sources import Log, locate
from dti_pipeline.events.split import split
from dti_pipeline.events.staging import stage
from dti_pipeline.paths import Paths

INTERACTIONS = "interactions.parquet"
QUARANTINE = "quarantine.parquet"
SPLITS = ("train", "validation", "test")


def ingest(config: Config, paths: Paths) -> IngestReport:
    """Read a log into ``data/events``; what was parsed before is taken from ``data/staged``.

    ``interactions.parquet``, one row for each kept rating, ordered by user (1, 2, 10, a, b), time and file order; a
    row's index is its id in all that follows. Columns: ``user_id, item_id, item_text`` (text), ``timestamp`` (unix
    seconds; null in a log without a clock), ``rating``, ``label`` (1 where rating > split.label_threshold), ``split``
    (train, validation, test) and ``position`` (index in the user's history). ``quarantine.parquet``: ``source_file,
    line, reason, raw`` of each row that is none. Same files and parameters: same bytes.

    The report holds the ledger: read = kept + quarantined + duplicates, checked. Cost: one read of the raw files, and
    memory up to ``events.memory_limit``. Raises InputError for a log that cannot be read or has no usable row.
    """
    log = locate(config.events, paths)
    inputs = {f"log/{file.name}": file.path for file in log.logs} | {
        f"items/{file.name}": file.path for file in log.items
    }
    with (
        connect(config.events.memory_limit, paths.events.parent) as connection,
        artifacts.publish(paths.events, "ingest", config.sections("events", "split"), inputs) as draft,
    ):
        parts, item_parts = stage(connection, log, paths.staged)
        _gather(connection, config, log, parts, item_parts)
        ledger = _ledger(connection)
        _require_rows(connection, ledger, paths.resolve(config.events.path))
        clock = any(file.form.clock for file in log.logs if file.form)
        split(connection, config.split, clock)
        run_script(connection, "canonical", threshold=config.split.label_threshold)
        columns = "user_id, item_id, item_text, timestamp, rating, label, split, position"
        write_parquet(
            connection, f'SELECT {columns} FROM interactions ORDER BY "user", position', draft.path / INTERACTIONS
        )
        write_parquet(connection, "FROM quarantine", draft.path / QUARANTINE)
        scale = (log.lowest, log.highest)
        report = draft.report = _report(connection, config.split.min_history, ledger, clock, scale)
    return report


def _gather(
    connection: duckdb.DuckDBPyConnection, config: Config, log: Log, parts: list[Path], item_parts: list[Path]
) -> None:
    connection.execute("CREATE TEMP TABLE files (file INTEGER, source_file VARCHAR, part VARCHAR)")
    names = [file.name for file in log.logs if file.form]
    connection.executemany(
        "INSERT INTO files VALUES (?, ?, ?)",
        [(index, name, str(part)) for index, (name, part) in enumerate(zip(names, parts, strict=True))],
    )
    connection.execute("CREATE TEMP TABLE item_rows (file INTEGER, line BIGINT, item_id VARCHAR, item_text VARCHAR)")
    for index, part in enumerate(item_parts):
        connection.execute("INSERT INTO item_rows SELECT $1, * FROM read_parquet($2)", [index, str(part)])
    parts_read = sorted({str(part) for part in parts})  # files that hold the same share a part
    run_script(connection, "gather", parts=parts_read, max_users=config.events.max_users)


def _ledger(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Every count taken by itself, so that the sum is a check."""
    read, quarantined, kept, duplicates, staged = _row(
        connection,
        """SELECT (SELECT count(*) FROM read_rows), (SELECT count(*) FROM quarantine), (SELECT count(*) FROM history),
           (SELECT coalesce(sum(copies - 1), 0)::BIGINT FROM history), (SELECT count(*) FROM staged)""",
    )
    if read != kept + quarantined + duplicates:
        raise AssertionError(f"ledger: {read} read is not {kept} kept + {quarantined} quarantined + {duplicates} twice")
    users, chosen = _row(
        connection,
        """SELECT (SELECT count(DISTINCT user_id) FROM staged WHERE reason IS NULL), (SELECT count(*) FROM users)""",
    )
    return {
        "read": read,
        "kept": kept,
        "quarantined": quarantined,
        "duplicates": duplicates,
        "rows_left_out": staged - read,
        "users_left_out": users - chosen,
    }


def _require_rows(connection: duckdb.DuckDBPyConnection, ledger: dict[str, int], path: Path) -> None:
    if not ledger["read"]:
        raise InputError(f"{path} is an empty log: it has no rows")
    if not ledger["kept"]:
        name, line, reason = _row(connection, "SELECT source_file, line, reason FROM quarantine LIMIT 1")
        raise InputError(f"{path} has no usable row among {ledger['read']}: {name} line {line}, for one: {reason}")


def _report(
    connection: duckdb.DuckDBPyConnection,
    min_history: int,
    ledger: dict[str, int],
    clock: bool,
    scale: tuple[float | None, float | None],
) -> IngestReport:
    users, items, rate, untitled, untitled_items, first, last = _row(
        connection,
        """SELECT count(DISTINCT user_id), count(DISTINCT item_id), avg(label), count(*) FILTER (untitled),
           count(DISTINCT item_id) FILTER (untitled), min(timestamp), max(timestamp) FROM interactions""",
    )
    rows = connection.execute(
        """SELECT split, count(*), count(*) FILTER (position >= $1), avg(label) FROM interactions GROUP BY split""",
        [min_history],
    ).fetchall()
    splits = {name: SplitCounts(0, 0, None) for name in SPLITS} | {name: SplitCounts(*row) for name, *row in rows}
    files = connection.execute(
        """SELECT files.source_file, count(row), count(reason) FROM files LEFT JOIN read_rows USING (source_file)
           GROUP BY ALL ORDER BY files.source_file"""
    ).fetchall()
    reasons = connection.execute("SELECT reason, count(*) FROM quarantine GROUP BY reason ORDER BY reason").fetchall()
    return IngestReport(
        **ledger,
        users=users,
        items=items,
        label_rate=rate,
        untitled=untitled,
        untitled_items=untitled_items,
        first_time=first,
        last_time=last,
        splits=splits,
        files={name: FileCounts(*counts) for name, *counts in files},
        reasons=dict(reasons),
        clock=clock,
        rating_scale=scale,
    )


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row
