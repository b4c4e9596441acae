"""Rows that break rules, counted in tasks: a rule about rows or users holds of a log as it holds of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline.config import Config
from dti_pipeline.events.database import Room, literal, parquet_files
from dti_pipeline.events.spans import ROWS, Span, batches, spans
from dti_pipeline.execution import tasks
from dti_pipeline.paths import Paths
from dti_pipeline.validation.expectations import ExpectUnexpectedRowsToBeAtMost
from dti_pipeline.validation.suites import Suite
from dti_pipeline.validation.tables import Batch, source_names

USERS = "SELECT DISTINCT user_id FROM interactions"


@dataclass(frozen=True)
class _Task:
    """Queries over a part of the log."""

    path: Path  # the interactions, or a staged part
    span: Span | None  # of the interactions; None: a staged part
    source_file: str  # of a staged part
    queries: tuple[str, ...]
    room: Room
    scratch: Path


def counted(config: Config, paths: Paths, suites: Sequence[Suite], batch: Batch, users: int) -> dict[str, int]:
    """How many rows each query finds of the rules that can be counted in parts: staged files and spans of users. Empty
    where the stage is one process, and where the log's users do not stand together: then only the whole log tells.

    ``users``: distinct ones of the interactions. Cost: one read of the log, and memory for a span in each task.
    """
    if not tasks.several(config.execution):
        return {}
    queries = {table: _queries(suites, table) for table in ("parsed", "interactions")}
    events, room, scratch = batch.interactions, Room.of_task(config), paths.checks.parent
    parts = batch.parts
    names, staged = source_names(parts, batch.source_files), len(parts)
    work = [_Task(part, None, names[part.name], queries["parsed"], room, scratch) for part in parts]
    work += [_Task(events, span, "", (*queries["interactions"], USERS), room, scratch) for span in spans(events, ROWS)]
    try:
        found = tasks.run(_count, work, config.execution, "parts checked")
    except duckdb.Error:  # a part by itself cannot be asked: the whole log can, or says why not
        return {}
    raw, canonical = (list(map(sum, zip(*part, strict=True))) for part in (found[:staged], found[staged:]))
    if canonical.pop() != users:
        return {}
    return dict(zip(queries["parsed"] + queries["interactions"], raw + canonical, strict=True))


def _queries(suites: Sequence[Suite], table: str) -> tuple[str, ...]:
    rules = [rule for suite in suites for rule in suite.rules if not rule.whole_log]
    found = [rule.expectation for rule in rules if isinstance(rule.expectation, ExpectUnexpectedRowsToBeAtMost)]
    return (f"FROM {table}", *dict.fromkeys(one.query for one in found if one.table == table))


def _count(task: _Task) -> list[int]:
    with task.room.connect(task.scratch) as connection:
        if task.span is None:
            connection.execute(
                f"CREATE VIEW parsed AS SELECT {literal(task.source_file)} AS source_file, *"
                f" FROM {parquet_files(task.path)}"
            )
        else:
            schema = pq.read_schema(task.path)
            rows = (batch for _, batch in batches(task.path, task.span, schema.names))
            connection.register("interactions", pa.Table.from_batches(rows))
        counts = [connection.execute(f"SELECT count(*) FROM ({query})").fetchone() for query in task.queries]
        return [count for (count,) in counts]
