"""Rows to histories and histories to interactions, for all users of a log or some: the same scripts for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

from dti_pipeline.config import SplitConfig
from dti_pipeline.events.database import identifier, run_script
from dti_pipeline.events.sources import CANONICAL

#: Between two moments that a log can tell apart, seconds: times are kept to the microsecond.
MOMENT = 1e-6


@dataclass(frozen=True)
class Rules:
    """What becomes of the rows of a log."""

    split: SplitConfig
    columns: tuple[str, ...]  # of the log, behind the canonical ones
    rates: tuple[str, ...]  # made of labels, behind those
    requests: bool  # the log has ids of requests
    together: bool  # rows of one time stamp are one request
    repeats: bool  # equal rows are an interaction each
    first_file: int = 0  # number of the load's first file; 0: of the whole log

    @property
    def first_row(self) -> int:
        """``row`` from which on rows are of the load; those before it are there for their sake."""
        return self.first_file << 40


def make_history(connection: duckdb.DuckDBPyConnection, rules: Rules) -> None:
    """Table ``history`` of ``good_rows`` and ``users``: what is read once, ordered, in requests."""
    run_script(connection, "history", together=rules.together, repeats=rules.repeats, first_row=rules.first_row)


def make_interactions(connection: duckdb.DuckDBPyConnection, rules: Rules) -> None:
    """View ``interactions`` of ``history``: the canonical columns, ``untitled``, ``user``, ``row`` and, where there are
    ``rules.columns``, the list ``more`` of their values; and table ``labelled``, the same without that list.

    ``users``, ``titles`` and ``good_rows`` are there; ``cuts`` for ``split.rule: global_time``; for columns of the log
    also ``of_users`` and ``of_items``, as :func:`first_values` makes them.
    """
    split = rules.split
    shares = {"validation_share": split.validation_share, "test_share": split.test_share}
    run_script(connection, f"split_{split.rule}", **shares)
    delay = split.feedback_delay
    if rules.together and (rules.requests or delay is not None):
        delay = _of_moments(delay)
    connection.execute(
        """CREATE TEMP TABLE requests AS
           SELECT "user", request, any_value(begins) AS begins, any_value(ends) AS ends, count(*) AS size
           FROM history GROUP BY "user", request"""
    )
    known = 'SELECT "user", request, request AS known FROM requests'
    if delay is not None:
        run_script(connection, "known")
        known = f"FROM known_after({delay})"
    connection.execute(f"CREATE TEMP TABLE known AS {known}")
    until_test = split.feedback_until == "test_start"
    run_script(connection, "canonical", threshold=split.label_threshold, until_test=until_test)
    connection.execute(f"CREATE TEMP VIEW interactions AS {_with_columns(rules.columns)}")


def _of_moments(delay: float | None) -> float:
    """A delay after which rows of one moment know nothing of each other."""
    return max(delay or 0.0, MOMENT / 2)


def make_rates(connection: duckdb.DuckDBPyConnection, rules: Rules) -> None:
    """Table ``rates`` of ``labelled``, where ``rules.rates`` asks for any: of the whole log, or of a load, for which
    ``good_rows`` of the whole log are there. Cost: a sort of the log by item and time."""
    if not rules.rates:
        return
    labels = "FROM labelled" if rules.split.feedback_until is None else "FROM labelled WHERE split <> 'test'"
    if rules.first_file:  # labelled has users of the load only
        row = 'user_id, item_id, rating, "timestamp", request_id, own_split'
        once = "" if rules.repeats else f"GROUP BY {row}"
        labels = (
            f"SELECT *, rating > {rules.split.label_threshold!r} AS label FROM (SELECT {row} FROM good_rows {once})"
        )
    connection.execute(f"CREATE TEMP VIEW labels AS {labels}")
    run_script(connection, "rates", delay=_of_moments(rules.split.feedback_delay))


def _with_columns(columns: Sequence[str]) -> str:
    """The query of the interactions with these columns of the log: of the row, else of its user, else of its item."""
    if not columns:
        return "FROM labelled"
    sources = ("own", "of_users", "of_items")
    values = [
        f"coalesce({', '.join(f'{source}.more[{i}]' for source in sources)}, '')" for i in range(1, len(columns) + 1)
    ]
    return f"""SELECT labelled.*, [{", ".join(values)}] AS more FROM labelled
        INNER JOIN (SELECT "row", more FROM good_rows) AS own USING ("row")
        LEFT JOIN of_users USING (user_id) LEFT JOIN of_items USING (item_id)"""


def first_values(connection: duckdb.DuckDBPyConnection) -> None:
    """Tables ``of_users`` and ``of_items``: columns of the log by the first row of a user's or an item's own file."""
    for kind in ("user", "item"):
        connection.execute(
            f"CREATE TEMP TABLE of_{kind}s AS"
            f" SELECT {kind}_id, arg_min(more, struct_pack(file := file, line := line)) AS more FROM {kind}_rows"
            f" WHERE reason IS NULL GROUP BY {kind}_id"
        )


def ordered(rules: Rules) -> str:
    """The query of what is published: ``interactions``, by user and position, and their ``rates``."""
    more = [f"more[{i}] AS {identifier(column)}" for i, column in enumerate(rules.columns, 1)]
    rates = 'INNER JOIN rates USING ("row")' if rules.rates else ""
    names = ", ".join([*CANONICAL, *more, *rules.rates])
    return f'SELECT {names} FROM interactions {rates} ORDER BY "user", position'
