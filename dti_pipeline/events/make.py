"""One load of a log, or a whole log, from staged rows to its files: the ledger, the split, the interactions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events.buckets import pieces
from dti_pipeline.events.database import first_row, literal, run_script, write_parquet
from dti_pipeline.events.histories import Rules, first_values, make_rates, ordered
from dti_pipeline.events.loads import Load
from dti_pipeline.events.published import CONTEXT, INTERACTIONS, QUARANTINE, SPLITS
from dti_pipeline.events.report import FileCounts, LoadReport, SplitCounts
from dti_pipeline.events.staging import Parts, StagedFile, read_parts
from dti_pipeline.paths import Paths


@dataclass(frozen=True)
class Source:
    """What a load is made of."""

    config: Config
    paths: Paths
    parts: Parts
    loads: Sequence[Load]  # those before it, and it
    cuts: tuple[float | None, float | None] | None  # of the files before all loads

    @property
    def load(self) -> Load:
        return self.loads[-1]

    def logs(self) -> list[StagedFile]:
        """The files with interactions, numbered: an earlier load's come first."""
        names = [file.name for load in self.loads for file in load.logs if file.name in self.parts.logs]
        return [StagedFile(i, name, str(self.parts.logs[name])) for i, name in enumerate(names)]


def make(connection: duckdb.DuckDBPyConnection, source: Source, rules: Rules, key: str, folder: Path) -> LoadReport:
    """Write the interactions and the quarantine of a load into ``folder``, on a connection of its own.

    Tables ``all_item_rows`` and ``all_user_rows`` are there. Cost: a sort of the histories of those users who have rows
    in the load, and for them a read of all staged rows before it. Raises InputError where the rows are none of a log.
    """
    load, config = source.load, source.config
    files = source.logs()
    own = {file.name for file in load.logs}
    rules = replace(rules, first_file=sum(file.name not in own for file in files))
    _read(connection, source, files, rules)
    with pieces(connection, config, source.paths, rules) as work:
        work.histories()
        ledger = _ledger(connection, source.paths.resolve(config.events.path), rules)
        _prepare_split(connection, rules, source)
        work.interactions()
        if load.number:
            _leave_context(connection, rules)
        else:
            _check_trains(connection, config.split.min_history)
        folder.mkdir(parents=True, exist_ok=True)
        make_rates(connection, rules)
        write_parquet(connection, ordered(rules), folder / INTERACTIONS)
        facts = _facts(connection, config.split.min_history, rules)
        cuts = connection.execute("FROM cuts").fetchone() if config.split.rule == "global_time" else None
    write_parquet(connection, "FROM quarantine", folder / QUARANTINE)
    return LoadReport(**ledger, **facts, name=load.name, key=key, cuts=cuts)


def _read(connection: duckdb.DuckDBPyConnection, source: Source, files: Sequence[StagedFile], rules: Rules) -> None:
    """Views of the rows that are staged, and tables of what is of the whole log, or of the load."""
    read_parts(connection, files, rules.first_file)
    for kind in ("item", "user"):
        names = [file.name for load in source.loads for file in getattr(load, f"{kind}s")]
        there = f"source_file IN ({', '.join(map(literal, names))})" if names else "false"
        connection.execute(f"CREATE TEMP VIEW {kind}_rows AS FROM all_{kind}_rows WHERE {there}")
    run_script(connection, "whole_log", max_users=source.config.events.max_users)
    if rules.columns:
        first_values(connection)
    _check_requests(connection, rules)


def _ledger(connection: duckdb.DuckDBPyConnection, path: Path, rules: Rules) -> dict[str, Any]:
    """Every count taken by itself, so that the sum is a check. InputError for a log without a usable row."""
    ledger = first_row(
        connection,
        """SELECT (SELECT count(*) FROM read_rows) AS read,
           (SELECT count(*) FROM history WHERE "row" >= $1) AS kept,
           (SELECT count(*) FROM quarantine) AS quarantined,
           (SELECT coalesce(sum(copies - ("row" >= $1)::INTEGER), 0)::BIGINT FROM history) AS duplicates,
           (SELECT count(*) FROM own_staged) - (SELECT count(*) FROM read_rows) AS rows_left_out,
           (SELECT count(DISTINCT user_id) FROM own_staged WHERE reason IS NULL)
           - (SELECT count(*) FROM users) AS users_left_out""",
        rules.first_row,
    )
    if ledger["read"] != ledger["kept"] + ledger["quarantined"] + ledger["duplicates"]:
        raise AssertionError(f"ledger: read is not kept + quarantined + duplicates: {ledger}")
    if rules.first_file:
        return ledger | {"late": _late(connection, rules)}
    if not ledger["read"]:
        raise InputError(f"{path} is an empty log: it has no rows")
    if not ledger["kept"]:
        first = first_row(connection, "FROM quarantine LIMIT 1")
        row = f"{first['source_file']} line {first['line']}, for one: {first['reason']}"
        raise InputError(f"{path} has no usable row among {ledger['read']}: {row}")
    return ledger | {"late": 0}


def _late(connection: duckdb.DuckDBPyConnection, rules: Rules) -> int:
    """New rows that stand before an old one of their user."""
    query = """
        SELECT count(*) AS late FROM history INNER JOIN (
            SELECT "user", max(position) AS last FROM history WHERE "row" < $1 GROUP BY "user"
        ) USING ("user") WHERE "row" >= $1 AND position < last
    """
    return int(first_row(connection, query, rules.first_row)["late"])


def _prepare_split(connection: duckdb.DuckDBPyConnection, rules: Rules, source: Source) -> None:
    """What the split takes from the whole ``history``: when validation and test begin, or that the log's own is sound.

    A user's rows go train, validation, test in order, whole requests at a time, so that no row learns from what judges.
    A load is cut where the files before all loads were.
    """
    split = rules.split
    if split.rule == "global_time" and source.cuts is not None:
        connection.execute("CREATE TEMP TABLE cuts AS SELECT $1::DOUBLE AS validation, $2::DOUBLE AS test", source.cuts)
    elif split.rule == "global_time":
        shares = {"validation_share": split.validation_share, "test_share": split.test_share}
        run_script(connection, "cuts", min_history=split.min_history, **shares)
    if split.rule == "column":
        run_script(connection, "misplaced")
        _check_own_split(connection)


def _leave_context(connection: duckdb.DuckDBPyConnection, rules: Rules) -> None:
    """Take away users without a new row, and have the rows of earlier loads for context only."""
    connection.execute(
        """DELETE FROM labelled WHERE "user" NOT IN (SELECT "user" FROM labelled WHERE "row" >= $1)""",
        [rules.first_row],
    )
    connection.execute("""UPDATE labelled SET split = $1 WHERE "row" < $2""", [CONTEXT, rules.first_row])


def _check_trains(connection: duckdb.DuckDBPyConnection, min_history: int) -> None:
    """Raise InputError where no row is left to train on."""
    query = "SELECT count(*) AS targets FROM labelled WHERE split = 'train' AND request >= $1"
    if not first_row(connection, query, min_history)["targets"]:
        raise InputError(
            f"no row is left to train on: none before the held-out ones has {min_history} earlier rows of its"
            " user (params key `split.min_history`)"
        )


def _check_requests(connection: duckdb.DuckDBPyConnection, rules: Rules) -> None:
    """Raise InputError for a request of two users."""
    if not rules.requests:
        return
    of_load = "AND request_id IN (SELECT request_id FROM own_staged WHERE reason IS NULL)"
    query = f"""SELECT request_id, min(user_id) AS one, max(user_id) AS other FROM staged WHERE reason IS NULL
                AND request_id IS NOT NULL {of_load if rules.first_file else ""} GROUP BY request_id HAVING one <> other
                ORDER BY request_id LIMIT 1"""
    if found := connection.execute(query).fetchone():
        raise InputError(
            "params key `events.columns.request_id` must name a column whose values belong to one user each:"
            f" {found[0]!r} has rows of users {found[1]!r} and {found[2]!r}"
        )


def _check_own_split(connection: duckdb.DuckDBPyConnection) -> None:
    """Raise InputError where the log's own split parts a request, or lets a row learn from what judges: a training row
    behind a test row would have that one's label in its context."""
    found = connection.execute("FROM misplaced").fetchone()
    if found is None:
        return
    here, split, there, before, parted = found
    rows = f"{here} is of split {split}, {there} before it of split {before}"
    if parted:
        raise InputError(
            f"{rows}, and both are of one request, which is never parted: without ids of requests, rows of one user and"
            " time stamp are one unless `split.ties` is ordered"
        )
    raise InputError(
        f"{rows}: `split.rule: column` needs each user's rows to go train, validation, test in time, so that no row"
        " learns from what judges"
    )


def _facts(connection: duckdb.DuckDBPyConnection, min_history: int, rules: Rules) -> dict[str, Any]:
    """Of the interactions and the quarantine, as the report names them."""
    connection.execute(f"CREATE TEMP VIEW own_rows AS FROM labelled WHERE split <> {literal(CONTEXT)}")
    users = items = "own_rows"
    if rules.first_file:
        users = f'(FROM own_rows WHERE "user" NOT IN (SELECT "user" FROM labelled WHERE split = {literal(CONTEXT)}))'
        connection.execute(
            f"""CREATE TEMP TABLE new_items AS FROM own_rows WHERE item_id NOT IN (
                SELECT item_id FROM staged WHERE reason IS NULL AND file < {rules.first_file})"""
        )
        items = "new_items"
    facts = first_row(
        connection,
        f"""SELECT (SELECT count(DISTINCT user_id) FROM {users}) AS users,
            (SELECT count(DISTINCT item_id) FROM {items}) AS items, avg(label) AS label_rate,
            count(*) FILTER (untitled) AS untitled,
            (SELECT count(DISTINCT item_id) FROM {items} WHERE untitled) AS untitled_items,
            floor(min(timestamp))::BIGINT AS first_time, floor(max(timestamp))::BIGINT AS last_time,
            coalesce(bool_and(timestamp = floor(timestamp)), true) AS whole_seconds FROM own_rows""",
    )
    splits = connection.execute(
        "SELECT split, count(*), count(*) FILTER (request >= $1), avg(label) FROM own_rows GROUP BY split",
        [min_history],
    ).fetchall()
    files = connection.execute(
        """SELECT files.source_file, count(row), count(reason) FROM files LEFT JOIN read_rows USING (source_file)
           WHERE files.file >= $1 GROUP BY ALL ORDER BY files.source_file""",
        [rules.first_file],
    ).fetchall()
    reasons = connection.execute("SELECT reason, count(*) FROM quarantine GROUP BY reason ORDER BY reason").fetchall()
    return facts | {
        "splits": dict.fromkeys(SPLITS, SplitCounts(0, 0, None)) | {name: SplitCounts(*row) for name, *row in splits},
        "files": {name: FileCounts(*counts) for name, *counts in files},
        "reasons": dict(reasons),
    }
