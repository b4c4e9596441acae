"""Raw log to canonical interactions: ordered, labelled, split, and every row accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from dti_pipeline import artifacts
from dti_pipeline.config import Config, SplitConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events import remote
from dti_pipeline.events.buckets import pieces
from dti_pipeline.events.database import connect, first_row, parquet_files, run_script, write_parquet
from dti_pipeline.events.histories import Rules, first_values, ordered
from dti_pipeline.events.report import CatalogueCounts, FileCounts, IngestReport, SplitCounts
from dti_pipeline.events.sources import locate
from dti_pipeline.events.staging import Parts, StagedFile, read_parts, stage
from dti_pipeline.execution import tasks
from dti_pipeline.paths import Paths

INTERACTIONS = "interactions.parquet"
QUARANTINE = "quarantine.parquet"
ITEM_QUARANTINE = "item_quarantine.parquet"
USER_QUARANTINE = "user_quarantine.parquet"
SPLITS = ("train", "validation", "test")


def ingest(config: Config, paths: Paths) -> IngestReport:
    """Read a log into ``data/events``; what was parsed before is taken from ``data/staged``.

    ``interactions.parquet``, one row for each kept rating, ordered by user (1, 2, 10, a, b), request and a hash of the
    item; a row's index is its id in all that follows. Columns: ``user_id, item_id, item_text`` (text), ``timestamp``
    (unix seconds, to the microsecond; null in a log without a clock), ``rating``, ``label`` (1 where rating >
    split.label_threshold), ``split`` (train, validation, test), ``position`` (index in the user's history), ``request``
    (position of the first row of the row's request: rows of one know nothing of each other) and ``known`` (so many of
    the user's first rows have a label that is known to the row, at most ``request``); then, as text, each column of the
    log that ``tokens.template`` or ``tokens.user_template`` names, empty where none of the row, its user and its item
    has a value. ``quarantine.parquet``: ``source_file, line, reason, raw`` of each row that is none;
    ``item_quarantine.parquet``: likewise of the rows of item files that name no item; ``user_quarantine.parquet``: of
    those of files of users, where there are any, that name no user. Same files and parameters: same bytes.

    The report holds the ledger: read = kept + quarantined + duplicates, checked, that of the files of items and of
    users, and the files below ``events.path`` that were not read. Cost: one read of the raw files, and
    memory up to ``events.memory_limit``. Raises InputError for a log that cannot be read, has no usable row, or lacks
    what ``split`` asks of it.
    """
    remote.bring(config.events, paths)
    log = locate(config.events, paths, config.tokens)
    clock, requests = (any(getattr(f.form, name) for f in log.logs if f.form) for name in ("clock", "requests"))
    rules = Rules(
        split=config.split,
        columns=log.columns,
        requests=requests,
        together=clock and config.split.ties == "together",
        repeats=config.events.keeps_duplicates(clock),
    )
    _check_clock(config.split, clock)
    inputs = {f"log/{file.name}": file.path for file in log.logs}
    inputs |= {f"items/{file.name}": file.path for file in log.items}
    inputs |= {f"users/{file.name}": file.path for file in log.users}
    recorded, tokens = config.sections("events", "split"), config.sections("tokens")["tokens"]
    if log.columns:
        recorded |= {"tokens": {key: tokens[key] for key in ("template", "user_template") if key in tokens}}
    with (
        tasks.engine(config.execution),
        connect(config.events.memory_limit, paths.events.parent) as connection,
        artifacts.publish(paths.events, "ingest", recorded, inputs) as draft,
    ):
        _read(connection, stage(log, paths.staged, config), rules, config.events.max_users)
        with pieces(connection, config, paths, rules) as work:
            work.histories()
            ledger = _ledger(connection, paths.resolve(config.events.path))
            _prepare_split(connection, rules)
            work.interactions()
            _check_trains(connection, config.split.min_history)
            write_parquet(connection, ordered(log.columns), draft.path / INTERACTIONS)
            facts = _facts(connection, config.split.min_history)
        write_parquet(connection, "FROM quarantine", draft.path / QUARANTINE)
        write_parquet(connection, _refused("item_rows"), draft.path / ITEM_QUARANTINE)
        if log.users:
            write_parquet(connection, _refused("user_rows"), draft.path / USER_QUARANTINE)
        report = draft.report = IngestReport(
            **ledger,
            **facts,
            catalogue=_beside(connection, "item_rows", "item_id"),
            user_table=_beside(connection, "user_rows", "user_id") if log.users else None,
            clock=clock,
            rating_scale=(log.lowest, log.highest),
            other_files=log.others,
        )
    return report


def _refused(table: str) -> str:
    """The query of the rows of files beside the log that name nothing."""
    return f"SELECT source_file, line, reason, raw FROM {table} WHERE reason IS NOT NULL ORDER BY file, line"


def _read(connection: duckdb.DuckDBPyConnection, parts: Parts, rules: Rules, max_users: int | None) -> None:
    """Views of the rows that are staged, and tables of what is of the whole log."""
    read_parts(connection, [StagedFile(i, name, str(part)) for i, (name, part) in enumerate(parts.logs.items())])
    for table, named, beside in (
        ("item_rows", "item_id VARCHAR, item_text", parts.items),
        ("user_rows", "user_id", parts.users),
    ):
        connection.execute(
            f"CREATE TEMP TABLE {table} (file INTEGER, source_file VARCHAR, line BIGINT, raw VARCHAR, {named} VARCHAR,"
            " reason VARCHAR, more VARCHAR[])"
        )
        for index, (name, part) in enumerate(beside.items()):
            query = (
                f"INSERT INTO {table} SELECT $1, $2, *{'' if rules.columns else ', NULL'} FROM {parquet_files(part)}"
            )
            connection.execute(query, [index, name])
    run_script(connection, "whole_log", max_users=max_users)
    if rules.columns:
        first_values(connection)
    _check_requests(connection)


def _ledger(connection: duckdb.DuckDBPyConnection, path: Path) -> dict[str, Any]:
    """Every count taken by itself, so that the sum is a check. Raises InputError where no row is usable."""
    ledger = first_row(
        connection,
        """SELECT (SELECT count(*) FROM read_rows) AS read, (SELECT count(*) FROM history) AS kept,
           (SELECT count(*) FROM quarantine) AS quarantined,
           (SELECT coalesce(sum(copies - 1), 0)::BIGINT FROM history) AS duplicates,
           (SELECT count(*) FROM staged) - (SELECT count(*) FROM read_rows) AS rows_left_out,
           (SELECT count(DISTINCT user_id) FROM staged WHERE reason IS NULL)
           - (SELECT count(*) FROM users) AS users_left_out""",
    )
    if ledger["read"] != ledger["kept"] + ledger["quarantined"] + ledger["duplicates"]:
        raise AssertionError(f"ledger: read is not kept + quarantined + duplicates: {ledger}")
    if not ledger["read"]:
        raise InputError(f"{path} is an empty log: it has no rows")
    if not ledger["kept"]:
        first = first_row(connection, "FROM quarantine LIMIT 1")
        row = f"{first['source_file']} line {first['line']}, for one: {first['reason']}"
        raise InputError(f"{path} has no usable row among {ledger['read']}: {row}")
    return ledger


def _check_clock(split: SplitConfig, clock: bool) -> None:
    """Raise InputError for a log without timestamps where they are needed."""
    if split.rule == "global_time" and not clock:
        raise InputError("the log has no timestamps, which `split.rule: global_time` needs: use split.rule=user_order")
    if split.feedback_delay is not None and not clock:
        raise InputError(
            f"the log has no timestamps, which `split.feedback_delay: {split.feedback_delay:g}` needs: set it to null"
        )


def _prepare_split(connection: duckdb.DuckDBPyConnection, rules: Rules) -> None:
    """What the split takes from the whole ``history``: when validation and test begin, or that the log's own is sound.

    A user's rows go train, validation, test in order, whole requests at a time, so that no row learns from what judges.
    """
    split = rules.split
    if split.rule == "global_time":
        shares = {"validation_share": split.validation_share, "test_share": split.test_share}
        run_script(connection, "cuts", min_history=split.min_history, **shares)
    if split.rule == "column":
        run_script(connection, "misplaced")
        _check_own_split(connection)


def _check_trains(connection: duckdb.DuckDBPyConnection, min_history: int) -> None:
    """Raise InputError where no row is left to train on."""
    query = "SELECT count(*) AS targets FROM labelled WHERE split = 'train' AND request >= $1"
    if not first_row(connection, query, min_history)["targets"]:
        raise InputError(
            f"no row is left to train on: none before the held-out ones has {min_history} earlier rows of its"
            " user (params key `split.min_history`)"
        )


def _check_requests(connection: duckdb.DuckDBPyConnection) -> None:
    """Raise InputError for a request of two users."""
    query = """SELECT request_id, min(user_id) AS one, max(user_id) AS other FROM staged WHERE reason IS NULL
               AND request_id IS NOT NULL GROUP BY request_id HAVING one <> other ORDER BY request_id LIMIT 1"""
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


def _facts(connection: duckdb.DuckDBPyConnection, min_history: int) -> dict[str, Any]:
    """Of the interactions and the quarantine, as the report names them."""
    facts = first_row(
        connection,
        """SELECT count(DISTINCT user_id) AS users, count(DISTINCT item_id) AS items, avg(label) AS label_rate,
           count(*) FILTER (untitled) AS untitled, count(DISTINCT item_id) FILTER (untitled) AS untitled_items,
           floor(min(timestamp))::BIGINT AS first_time, floor(max(timestamp))::BIGINT AS last_time,
           coalesce(bool_and(timestamp = floor(timestamp)), true) AS whole_seconds FROM labelled""",
    )
    splits = connection.execute(
        "SELECT split, count(*), count(*) FILTER (request >= $1), avg(label) FROM labelled GROUP BY split",
        [min_history],
    ).fetchall()
    files = connection.execute(
        """SELECT files.source_file, count(row), count(reason) FROM files LEFT JOIN read_rows USING (source_file)
           GROUP BY ALL ORDER BY files.source_file"""
    ).fetchall()
    reasons = connection.execute("SELECT reason, count(*) FROM quarantine GROUP BY reason ORDER BY reason").fetchall()
    return facts | {
        "splits": dict.fromkeys(SPLITS, SplitCounts(0, 0, None)) | {name: SplitCounts(*row) for name, *row in splits},
        "files": {name: FileCounts(*counts) for name, *counts in files},
        "reasons": dict(reasons),
    }


def _beside(connection: duckdb.DuckDBPyConnection, table: str, key: str) -> CatalogueCounts:
    """The ledger of the files beside the log that ``table`` holds, of items or of users, whose ids are ``key``."""
    counts = first_row(
        connection,
        f"""SELECT count(*) AS read, count(DISTINCT {key}) FILTER (reason IS NULL) AS kept,
            count(reason) AS quarantined, read - kept - quarantined AS repeated FROM {table}""",
    )
    files = connection.execute(
        f"SELECT source_file, count(*), count(reason) FROM {table} GROUP BY source_file ORDER BY source_file"
    ).fetchall()
    reasons = connection.execute(
        f"SELECT reason, count(*) FROM {table} WHERE reason IS NOT NULL GROUP BY reason ORDER BY reason"
    ).fetchall()
    return CatalogueCounts(**counts, files={name: FileCounts(*row) for name, *row in files}, reasons=dict(reasons))
