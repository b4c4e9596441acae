"""Raw log to canonical interactions: ordered, labelled, split, and every row accounted for."""

from __future__ import annotations

from collections.abc import Sequence

import duckdb

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events import loads, remote
from dti_pipeline.events.database import connect, first_row, parquet_files, write_parquet
from dti_pipeline.events.histories import Rules
from dti_pipeline.events.make import Source, make
from dti_pipeline.events.report import CatalogueCounts, FileCounts, IngestReport, LoadReport, together
from dti_pipeline.events.sources import locate
from dti_pipeline.events.staging import Parts, stage
from dti_pipeline.execution import tasks
from dti_pipeline.paths import Paths

ITEM_QUARANTINE = "item_quarantine.parquet"
USER_QUARANTINE = "user_quarantine.parquet"


def ingest(config: Config, paths: Paths) -> IngestReport:
    """Read a log into ``data/events``; what was parsed before is taken from ``data/staged``.

    ``interactions.parquet``, one row for each kept rating, ordered by user (1, 2, 10, a, b), request and a hash of the
    item; a row's index is its id in all that follows. Columns: ``user_id, item_id, item_text`` (text), ``timestamp``
    (unix seconds, to the microsecond; null in a log without a clock), ``rating``, ``label`` (1 where rating >
    split.label_threshold), ``split`` (train, validation, test), ``position`` (index in the user's history), ``request``
    (position of the first row of the row's request: rows of one know nothing of each other) and ``known`` (so many of
    the user's first rows have a label that is known to the row, at most ``request``); then, as text, each column of
    the log that ``tokens.template`` or ``tokens.user_template`` names, empty where none of the row, its user and its
    item has a value, and ``item_rate`` and ``user_rate`` where it names them. ``quarantine.parquet``: ``source_file,
    line, reason, raw`` of each row that is none; ``item_quarantine.parquet``: likewise of the rows of item files that
    name no item; ``user_quarantine.parquet``: of those of files of users, where there are any, that name no user.
    Same files and parameters: same bytes.

    With ``events.loads_from``, ``loads/1``, ``loads/2`` and so on hold the first two files of each load; rows that are
    there for those behind them have the split ``context``, and rows are counted from one file to the next. A load that
    the folder holds already is kept as it is.

    The report holds the ledger: read = kept + quarantined + duplicates, checked, that of the files of items and of
    users, and the files below ``events.path`` that were not read. Cost: one read of the raw files, and
    memory up to ``events.memory_limit``. Raises InputError for a log that cannot be read, has no usable row, or lacks
    what ``split`` asks of it.
    """
    remote.bring(config.events, paths)
    log, root = locate(config.events, paths, config.tokens), paths.resolve(config.events.path)
    clock, requests = (any(getattr(f.form, name) for f in log.logs if f.form) for name in ("clock", "requests"))
    rules = Rules(
        split=config.split,
        columns=log.columns,
        rates=config.tokens.rates,
        requests=requests,
        together=clock and config.split.ties == "together",
        repeats=config.events.keeps_duplicates(clock),
    )
    _check_clock(config, clock)
    _check_loads(config)
    parts_of_log = loads.cut(log, root, config.events.loads_from)
    inputs = {f"log/{file.name}": file.path for file in log.logs}
    inputs |= {f"items/{file.name}": file.path for file in log.items}
    inputs |= {f"users/{file.name}": file.path for file in log.users}
    recorded, tokens = config.sections("events", "split"), config.sections("tokens")["tokens"]
    if log.columns or rules.rates:
        recorded |= {"tokens": {key: tokens[key] for key in ("template", "user_template") if key in tokens}}
    with (
        tasks.engine(config.execution),
        connect(config.events.memory_limit, paths.events.parent) as connection,
        artifacts.publish(paths.events, "ingest", recorded, inputs) as draft,
    ):
        parts = stage(log, paths.staged, config)
        _read_beside(connection, parts, parts_of_log, bool(log.columns))
        made, found = loads.made_before(paths.events), list[LoadReport]()
        for load, key in zip(parts_of_log, loads.keys(parts_of_log, parts, recorded), strict=True):
            if there := made.get((load.number, key)):
                loads.keep(load.folder(paths.events), load.folder(draft.path))
                found.append(there)
                continue
            with connection.cursor() as cursor:
                source = Source(config, paths, parts, parts_of_log[: load.number + 1], found[0].cuts if found else None)
                found.append(make(cursor, source, rules, key, load.folder(draft.path)))
        write_parquet(connection, _refused("all_item_rows"), draft.path / ITEM_QUARANTINE)
        if log.users:
            write_parquet(connection, _refused("all_user_rows"), draft.path / USER_QUARANTINE)
        report = draft.report = IngestReport(
            **vars(together(found)),
            catalogue=_beside(connection, "all_item_rows", "item_id"),
            user_table=_beside(connection, "all_user_rows", "user_id") if log.users else None,
            clock=clock,
            rating_scale=(log.lowest, log.highest),
            other_files=log.others,
            loads=tuple(found) if config.events.loads_from is not None else None,
        )
    return report


def _read_beside(
    connection: duckdb.DuckDBPyConnection, parts: Parts, of_log: Sequence[loads.Load], columns: bool
) -> None:
    """Tables ``all_item_rows`` and ``all_user_rows`` of the files beside the log, an earlier load's first."""
    for table, named, beside, files in (
        ("all_item_rows", "item_id VARCHAR, item_text", parts.items, [file for load in of_log for file in load.items]),
        ("all_user_rows", "user_id", parts.users, [file for load in of_log for file in load.users]),
    ):
        connection.execute(
            f"CREATE TABLE {table} (source_file VARCHAR, file INTEGER, line BIGINT, raw VARCHAR, {named} VARCHAR,"
            " reason VARCHAR, more VARCHAR[])"
        )
        for index, name in enumerate(file.name for file in files if file.name in beside):
            rows = f"*{'' if columns else ', NULL'} FROM {parquet_files(beside[name])}"
            connection.execute(f"INSERT INTO {table} SELECT $1, $2, {rows}", [name, index])


def _refused(table: str) -> str:
    """The query of the rows of files beside the log that name nothing."""
    return f"SELECT source_file, line, reason, raw FROM {table} WHERE reason IS NOT NULL ORDER BY file, line"


def _check_clock(config: Config, clock: bool) -> None:
    """Raise InputError for a log without timestamps where they are needed."""
    split = config.split
    if "item_rate" in config.tokens.rates and not clock:
        raise InputError(
            "the log has no timestamps, which {item_rate} in params key `tokens.template` needs: they say which labels"
            " of other users were known"
        )
    if split.rule == "global_time" and not clock:
        raise InputError("the log has no timestamps, which `split.rule: global_time` needs: use split.rule=user_order")
    if split.feedback_delay is not None and not clock:
        raise InputError(
            f"the log has no timestamps, which `split.feedback_delay: {split.feedback_delay:g}` needs: set it to null"
        )


def _check_loads(config: Config) -> None:
    """Raise InputError for a split that a load cannot have."""
    if config.events.loads_from is not None and config.split.rule == "user_order":
        raise InputError(
            "params key `split.rule` must be global_time or column where `events.loads_from` names a load: shares of a"
            " user's own history change with every row, and what was made before must not"
        )
    if config.events.loads_from is not None and config.tokens.rates and config.split.feedback_until is not None:
        raise InputError(
            "params key `split.feedback_until` must be null where `events.loads_from` names a load and"
            f" `tokens.template` {{{config.tokens.rates[0]}}}: a load tells the split of its own users only"
        )


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
