"""Facts of a raw log, before anything is decided about it: counts, ratings, lengths of histories, times, requests."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import duckdb

from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events.database import connect, first_row, parquet_files
from dti_pipeline.events.sources import locate
from dti_pipeline.events.staging import stage
from dti_pipeline.paths import Paths

#: More distinct ratings than this are a measured quantity, such as seconds watched.
DISTINCT = 50


@dataclass(frozen=True)
class Facts:
    """Of the rows of a log that can be read; ``read`` counts the others too."""

    read: int
    rows: int
    users: int
    items: int
    reason: str | None  # why most of the other rows cannot be read; None where there are none
    ratings: tuple[tuple[float, int], ...]  # distinct values, ascending, with their rows; () where there are too many
    quartiles: tuple[float, float, float]  # of the ratings
    long: dict[int, float]  # share of the rows that have at least so many rows of their user before them
    targets: dict[int, int]  # rows that have at least so many
    first: float | None  # unix seconds; None: no clock
    last: float | None
    hasty: float | None  # share of a user's moments that come within a minute of the one before
    requests: int | None  # distinct ids of requests; None: the log has none
    shared: int  # requests with rows of several users
    splits: dict[str, int]  # rows of the log's own split, by name
    early: int  # users with a test row before a training row, or the like
    words: float  # mean number of words of an item's title; 0: there are none


def facts(config: Config, home: Paths) -> Facts:
    """Read a whole log as ``dti ingest`` would. Cost: one parse of every file. Raises InputError as it does."""
    log = locate(config.events, home, config.tokens)
    with (
        tempfile.TemporaryDirectory() as folder,
        connect(config.events.memory_limit, Path(folder)) as connection,
    ):
        parts = stage(log, Path(folder) / "staged", config)
        connection.execute(
            f"CREATE TEMP VIEW read AS SELECT * FROM {parquet_files(*sorted(set(parts.logs.values())))};"
            "CREATE TEMP VIEW good AS FROM read WHERE reason IS NULL"
        )
        titles = parquet_files(*sorted(set(parts.items.values()))) if parts.items else None
        return _facts(connection, config, titles)


def _facts(connection: duckdb.DuckDBPyConnection, config: Config, titles: str | None) -> Facts:
    (read,) = first_row(connection, "SELECT count(*) FROM read").values()
    rows, users, items, first, last = first_row(
        connection,
        "SELECT count(*), count(DISTINCT user_id), count(DISTINCT item_id), min(timestamp), max(timestamp) FROM good",
    ).values()
    worst = connection.execute(
        "SELECT reason FROM read WHERE reason IS NOT NULL GROUP BY reason ORDER BY count(*) DESC, reason LIMIT 1"
    ).fetchone()
    if not rows:
        raise InputError(f"{config.events.path} has no usable row: {worst[0] if worst else 'it is empty'}")
    values = connection.execute(
        f"SELECT rating, count(*) FROM good GROUP BY rating ORDER BY rating LIMIT {DISTINCT + 1}"
    ).fetchall()
    (quartiles,) = first_row(connection, "SELECT quantile_disc(rating, [0.25, 0.5, 0.75]) FROM good").values()
    before = (1, 5, 10, 20, 50)
    later = first_row(
        connection,
        f"SELECT {', '.join(f'coalesce(sum(greatest(n - {least}, 0)), 0)::BIGINT' for least in before)}"
        " FROM (SELECT count(*) AS n FROM good GROUP BY user_id)",
    ).values()
    hasty = None
    if first is not None:
        (hasty,) = first_row(
            connection,
            """WITH moments AS (SELECT DISTINCT user_id, timestamp FROM good),
            gaps AS (SELECT timestamp - lag(timestamp) OVER (PARTITION BY user_id ORDER BY timestamp) AS gap
                     FROM moments)
            SELECT coalesce(avg((gap < 60)::INTEGER), 0) FROM gaps WHERE gap IS NOT NULL""",
        ).values()
    requests, shared = first_row(
        connection,
        "SELECT count(*), count(*) FILTER (people > 1) FROM (SELECT count(DISTINCT user_id) AS people FROM good"
        " WHERE request_id IS NOT NULL GROUP BY request_id)",
    ).values()
    splits = dict(
        connection.execute("SELECT split, count(*) FROM good WHERE split IS NOT NULL GROUP BY split").fetchall()
    )
    (early,) = first_row(
        connection,
        """SELECT count(*) FROM (
            SELECT max(timestamp) FILTER (split = 'train') AS train, min(timestamp) FILTER (split = 'validation') AS v0,
            max(timestamp) FILTER (split = 'validation') AS v1, min(timestamp) FILTER (split = 'test') AS test
            FROM good GROUP BY user_id)
        WHERE train > least(v0, test) OR v1 > test""",
    ).values()
    source = titles or "good"
    (words,) = first_row(
        connection,
        f"SELECT coalesce(avg(len(string_split(item_text, ' '))), 0) FROM (SELECT DISTINCT item_text FROM {source})"
        " WHERE item_text <> ''",
    ).values()
    return Facts(
        read=read,
        rows=rows,
        users=users,
        items=items,
        reason=worst[0] if worst else None,
        ratings=tuple(values) if len(values) <= DISTINCT else (),
        quartiles=tuple(quartiles),
        long={least: round(count / rows, 4) for least, count in zip(before, later, strict=True)},
        targets=dict(zip(before, later, strict=True)),
        first=first,
        last=last,
        hasty=hasty,
        requests=requests or None,
        shared=shared,
        splits=splits,
        early=early,
        words=words,
    )
