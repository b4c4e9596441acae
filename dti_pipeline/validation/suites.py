"""Five Great Expectations suites for a batch.

Expectations about rows are queries; those about columns, splits and figures are Great Expectations' own and see frames
of a few rows. Data Docs and the command line show the descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import great_expectations.expectations as gxe
import pandas

from dti_pipeline.config import Config
from dti_pipeline.events.database import literal
from dti_pipeline.events.published import CONTEXT, SPLITS
from dti_pipeline.events.report import LogCounts
from dti_pipeline.validation.expectations import Rule, unexpected_rows
from dti_pipeline.validation.report import Profile
from dti_pipeline.validation.tables import Tables

# The rating scale of the log: lowest and highest, None where it is open.
Scale = tuple[float | None, float | None]
# Name, value, description, lowest and highest allowed value.
Figure = tuple[str, float, str, float | None, float | None]
# Each row beside the one before it in the file: a streaming window, constant memory at any size.
_HISTORY = """
    SELECT *, lag(user_id) OVER () AS previous_user, lag(position) OVER () AS previous_position,
        lag(split) OVER () AS previous_split, lag(request) OVER () AS previous_request,
        lag(known) OVER () AS previous_known
    FROM {batch}
"""
# Each request and the time at which it begins.
_REQUESTS = """
    SELECT user_id, request, min(split) AS split, min(timestamp) AS timestamp FROM {batch} GROUP BY user_id, request
"""
RAW_TYPES = {
    "line": "BIGINT", "raw": "VARCHAR", "user_id": "VARCHAR", "item_id": "VARCHAR", "rating": "DOUBLE",
    "timestamp": "DOUBLE", "item_text": "VARCHAR", "request_id": "VARCHAR", "split": "VARCHAR", "reason": "VARCHAR",
}  # fmt: skip
CANONICAL_TYPES = {
    "user_id": "VARCHAR", "item_id": "VARCHAR", "item_text": "VARCHAR", "timestamp": "DOUBLE", "rating": "DOUBLE",
    "label": "TINYINT", "split": "VARCHAR", "position": "INTEGER", "request": "INTEGER", "known": "INTEGER",
}  # fmt: skip


def canonical_types(config: Config) -> dict[str, str]:
    """Of the interactions, with the columns that the templates name."""
    return CANONICAL_TYPES | dict.fromkeys(config.tokens.published_columns, "VARCHAR")


@dataclass(frozen=True)
class Suite:
    """Rules over one batch. ``frame`` is what stock expectations see of it."""

    name: str
    asset: str  # what the batch is called in Data Docs and in the names of their files
    frame: pandas.DataFrame
    rules: list[Rule]


def raw(config: Config, tables: Tables, scale: Scale) -> Suite:
    """Rows as they were read, good and bad: ``staged``, and ``parsed``, which adds the name of the source file.

    ``reason`` says why a row was refused, null where it was not.
    """
    rule, share = partial(unexpected_rows, "parsed"), config.validation.max_quarantined_share
    refused = "SELECT source_file, line, reason, raw FROM {batch} WHERE reason IS NOT NULL"
    good = "SELECT source_file, line, user_id, item_id, {} FROM {{batch}} WHERE reason IS NULL AND {}".format
    rules = [
        rule("line_unique", "line", "A line of a raw file is read once", _repeated("source_file, line")),
        rule("refused_row_kept", "raw", "A refused row keeps its line number and its text",
            f"{refused} AND (raw IS NULL OR line IS NULL)"),
        *(
            rule(f"{column}_not_null", column, f"A row that was not refused has its {column}",
                good("rating", f"{column} IS NULL"))
            for column in ("user_id", "item_id", "rating")
        ),
        rule("rating_range", "rating", f"A row that was not refused has a rating {_words(scale)}",
            good("rating", _outside(scale))),
        rule("timestamp_range", "timestamp", "A time is not before 1970", good("timestamp", "timestamp < 0")),
        rule("refused_share", "reason", f"At most {share:.2%} of the rows read were refused", refused, share),
    ]  # fmt: skip
    types = RAW_TYPES | ({"more": "VARCHAR[]"} if config.tokens.read_columns else {})
    return _of_table("raw", "rows_as_read", tables.types("staged"), types, rules)


def canonical(config: Config, tables: Tables, scale: Scale, clock: bool, load: bool = False) -> Suite:
    """The interactions that everything downstream reads; ``clock``: of a log that has timestamps; ``load``: of a load,
    which has rows for context too."""
    rules = _values(config, scale, (*SPLITS, CONTEXT) if load else SPLITS) + _histories(config, clock)
    rules += _requests(config)
    return _of_table("canonical", "interactions", tables.types("interactions"), canonical_types(config), rules)


def _values(config: Config, scale: Scale, splits: Sequence[str]) -> list[Rule]:
    """The values of canonical interactions, each row by itself, and items the same wherever they occur."""
    rule = partial(unexpected_rows, "interactions")
    threshold, share = config.split.label_threshold, config.validation.max_untitled_share
    return [
        *(
            rule(f"{column}_not_null", column, f"No row lacks its {column}", _rows(f"{column} IS NULL"))
            for column in CANONICAL_TYPES
            if column != "timestamp"
        ),
        rule("timestamp_not_null", "timestamp", "No row lacks its time, unless the log has no clock at all",
            _rows("timestamp IS NULL AND (SELECT count(timestamp) FROM {batch}) > 0"), whole_log=True),
        rule("rating_range", "rating", f"A rating is {_words(scale)}", _rows(_outside(scale), "rating")),
        rule("label_set", "label", "A label is 0 or 1", _rows("label NOT IN (0, 1)", "label")),
        rule("label_of_rating", "label", f"The label is 1 where the rating is above {threshold:g}, else 0",
            _rows(f"label IN (0, 1) AND label <> (rating > {threshold!r})::TINYINT", "rating", "label")),
        rule("split_set", "split", f"A split is {', '.join(splits[:-1])} or {splits[-1]}",
            _rows(f"split NOT IN {tuple(splits)}", "split")),
        rule("item_text_not_blank", "item_text", "An item's text says something",
            _rows("trim(item_text) = ''", "item_text")),
        rule("item_one_text", "item_text", "An item has one text wherever it occurs",
            "SELECT item_id, min(item_text) AS one_text, max(item_text) AS other_text FROM {batch}"
            " GROUP BY item_id HAVING min(item_text) <> max(item_text)", whole_log=True),
        *(
            rule(f"{column}_set", column, "A rate is a digit, tenths of the clicks",
                _rows(f"NOT regexp_full_match({column}, '[0-9]')", column))
            for column in config.tokens.rates
        ),
        rule("untitled_share", "item_text",
            f"At most {share:.2%} of the rows are of items without a title of their own",
            _rows("item_text = 'item ' || item_id", "item_text"),  # of an item without a title
            share),
    ]  # fmt: skip


def _histories(config: Config, clock: bool) -> list[Rule]:
    """The order of rows: places and times within a user, and the order of the splits."""
    rule, beside = partial(unexpected_rows, "interactions"), partial(_rows, table=f"({_HISTORY})")
    rank = "list_position(['train', 'validation', 'test'], {})"
    again = ", request" if config.events.columns.request_id else ""  # an item may be shown in two at once
    once = [
        rule("interaction_unique", None,
            f"A rating is there once: user, item, time and rating{again} together are unique",
            _repeated(f"user_id, item_id, timestamp, rating{again}")),
    ]  # fmt: skip
    rules = [
        *(() if config.events.keeps_duplicates(clock) else once),
        rule("position_unique", "position", "A user has one row at a position", _repeated("user_id, position")),
        rule("position_contiguous", "position",
            "A user's rows stand together, their positions count 0, 1, 2, ...",
            beside("position IS DISTINCT FROM CASE WHEN user_id = previous_user THEN previous_position + 1 ELSE 0 END",
                "previous_position")),
        rule("time_monotone", "timestamp", "Time never runs backwards from one request of a user to the next",
            "SELECT * FROM (SELECT *, lag(timestamp) OVER (PARTITION BY user_id ORDER BY request) AS previous_timestamp"
            f" FROM ({_REQUESTS})) WHERE timestamp < previous_timestamp"),
        rule("split_order", "split", "Within a user, train comes before validation and validation before test",
            beside(f"user_id = previous_user AND {rank.format('split')} < {rank.format('previous_split')}",
                "split", "previous_split")),
        rule("split_clock", "split",
            "On the one clock of all users, train ends before validation begins and validation before test",
            f"SELECT user_id, request, split, timestamp FROM ({_REQUESTS}), (SELECT"
            " min(timestamp) FILTER (split = 'validation') AS validation_start,"
            f" min(timestamp) FILTER (split = 'test') AS test_start FROM ({_REQUESTS}))"
            " WHERE (split = 'train' AND timestamp >= least(validation_start, test_start))"
            " OR (split = 'validation' AND timestamp >= test_start)", whole_log=True),
    ]  # fmt: skip
    return rules if config.split.rule == "global_time" else rules[:-1]


def _requests(config: Config) -> list[Rule]:
    """Requests, and what is known to them."""
    rule, beside = partial(unexpected_rows, "interactions"), partial(_rows, table=f"({_HISTORY})")
    split = config.split
    delay = split.feedback_delay or 0.0
    tied = " OR last.timestamp >= target.timestamp" if split.ties == "together" else ""
    until = "" if split.feedback_until is None else " OR last.split = 'test'"
    return [
        rule("request_whole", "request", "A request's rows stand together and name its first one's position",
            beside("request <> position AND (user_id = previous_user AND request = previous_request) IS NOT TRUE",
                "request", "previous_request")),
        rule("request_one_split", "request", "A request's rows are in one split",
            beside("user_id = previous_user AND request = previous_request AND split <> previous_split"
                f" AND {literal(CONTEXT)} NOT IN (split, previous_split)",
                "request", "split", "previous_split")),
        rule("known_before", "known", "A row knows labels of rows before its request only",
            _rows("known NOT BETWEEN 0 AND request", "request", "known")),
        rule("known_grows", "known", "What is known never becomes less along a history, and is one for a request",
            beside("user_id = previous_user"
                " AND (known < previous_known OR (request = previous_request AND known <> previous_known))",
                "request", "known", "previous_known")),
        rule("known_in_time", "known", f"A label is known {delay:g} seconds after its row at the earliest"
            + (", and never to a row of its moment" if tied else "")
            + ("" if split.feedback_until is None else ", and never if its row tests"),
            "SELECT user_id, target.position, target.timestamp, target.known, last.timestamp AS last_known_timestamp,"
            " last.split AS last_known_split FROM {batch} AS target INNER JOIN {batch} AS last USING (user_id)"
            " WHERE last.position = target.known - 1"
            f" AND (last.timestamp + {delay!r} > target.timestamp{tied}{until})"),
    ]  # fmt: skip


def _of_table(name: str, asset: str, types: dict[str, str], wanted: dict[str, str], rules: list[Rule]) -> Suite:
    """The types of a table's columns, in a frame of one row; where they are as wanted, its rows are checked too."""
    columns = gxe.ExpectTableColumnsToMatchOrderedList(
        column_list=list(wanted), description="The columns are " + ", ".join(wanted)
    )
    schema = [Rule("columns", columns)]
    for column, kind in wanted.items():
        words = f"{column} is of type {kind}"
        expectation = gxe.ExpectColumnMostCommonValueToBeInSet(column=column, value_set=[kind], description=words)
        schema.append(Rule(f"{column}_type", expectation))
    return Suite(name, asset, pandas.DataFrame([types]), schema + rules if types == wanted else schema)


def splits(config: Config, tables: Tables) -> Suite:
    """One row for each split; a target is a row with enough history to be predicted."""
    asked = ["train", "validation", "test"] if config.split.validation_share else ["train", "test"]
    needed, order = config.validation.min_targets, str(asked)
    query = f"""
        SELECT split, count(user_id) AS rows, count(*) FILTER (target) AS targets,
            count(*) FILTER (target AND label = 1) AS clicks, count(*) FILTER (target AND label = 0) AS skips
        FROM (SELECT unnest({order}) AS split)
        LEFT JOIN (SELECT *, request >= {config.split.min_history} AS target FROM interactions) USING (split)
        GROUP BY split
    """
    minima = [
        ("targets", f"Every split has at least {needed:,} targets", needed),
        ("clicks", "The targets of every split include clicks (label 1)", 1),
        ("skips", "The targets of every split include skips (label 0)", 1),
    ]
    rules = [
        _figure(column, words, least, None, f"FROM ({query}) WHERE {column} < {least}")
        for column, words, least in minima
    ]
    return Suite("splits", "splits", tables.frame(f"FROM ({query}) ORDER BY list_position({order}, split)"), rules)


def batch(config: Config, tables: Tables, profile: Profile, ledger: LogCounts, load: bool = False) -> Suite:
    """The batch as a whole; ``ledger`` is ingestion's report of it.

    A ``load`` may be small, and shares of fewer rows than ``validation.min_rows`` say nothing.
    """
    limits = config.validation
    low, high = limits.label_rate
    least, most = limits.click_later
    lost = ledger.read - ledger.kept - ledger.quarantined - ledger.duplicates
    figures: list[Figure] = [
        ("rows", profile.rows, f"There are at least {limits.min_rows:,} rows", limits.min_rows, None),
        ("users", profile.users, f"There are at least {limits.min_users:,} users", limits.min_users, None),
    ]
    shares: list[Figure] = [
        ("label_rate", profile.label_rate, f"From {low:.1%} to {high:.1%} of the labels are 1", low, high),
        ("click_later", click_later(tables, load), "Of a user's rows, a click and a skip, the click is the later one in"
            f" {least:.0%} to {most:.0%} of all pairs: their order does not tell labels", least, most),
    ]  # fmt: skip
    counts: list[Figure] = [
        ("unaccounted_rows", lost, "Rows read = rows kept + quarantined + duplicates", 0, 0),
        ("rows_beside_ledger", profile.rows - ledger.kept,
            "The rows that are there are the rows that the ledger says were kept", 0, 0),
    ]  # fmt: skip
    if load:
        figures = []
        shares = shares if profile.rows >= limits.min_rows else []
    return _of_figures("batch", "figures", [*figures, *shares, *counts])


def click_later(tables: Tables, load: bool = False) -> float:
    """Share of all pairs of a click and a skip of one user in which the click is the later one; 0.5 where there is no
    such pair. Of a ``load`` its own rows count. Cost: one pass over the interactions, and a sort of a load's own."""
    own = f"""(SELECT user_id, label, row_number() OVER (PARTITION BY user_id ORDER BY position) - 1 AS position
        FROM interactions WHERE split <> '{CONTEXT}')"""
    query = f"""
        SELECT sum(before - clicks * (clicks - 1) / 2), sum(clicks * skips) FROM (
            SELECT sum(position) FILTER (label = 1) AS before, count(*) FILTER (label = 1)::DOUBLE AS clicks,
                count(*) FILTER (label = 0)::DOUBLE AS skips
            FROM {own if load else "interactions"} GROUP BY user_id HAVING clicks > 0 AND skips > 0
        )
    """
    ((later, pairs),) = tables.connection.execute(query).fetchall()
    return later / pairs if pairs else 0.5


def drift(config: Config, profile: Profile, previous: Profile, load: bool = False) -> Suite:
    """This batch against the one that last passed; a ``load`` against the one before it."""
    rate, volume = config.validation.max_label_rate_drift, config.validation.min_volume_ratio
    before = "load before it" if load else "previous accepted batch"
    figures: list[Figure] = [
        ("label_rate_change", abs(profile.label_rate - previous.label_rate),
            f"The share of 1 among the labels is within {rate:g} of the {before}'s"
            f" {previous.label_rate:.4f}", None, rate),
        ("volume_ratio", profile.rows / previous.rows,
            f"There are at least {volume:g} times the {before}'s {previous.rows:,} rows", volume, None),
    ]  # fmt: skip
    if load and profile.rows < config.validation.min_rows:
        figures = figures[1:]
    return _of_figures("drift", "change_since_accepted", figures)


def _of_figures(name: str, asset: str, figures: Sequence[Figure]) -> Suite:
    """Figures with their name, value, description, lowest and highest allowed value, in a frame of one row."""
    frame = pandas.DataFrame([{column: value for column, value, *_ in figures}])
    return Suite(name, asset, frame, [_figure(column, words, low, high) for column, _, words, low, high in figures])


def _figure(column: str, description: str, low: float | None, high: float | None, rows: str | None = None) -> Rule:
    """The bounds of a column's minimum: in a frame of one row that is the figure itself, which Data Docs then show."""
    expectation = gxe.ExpectColumnMinToBeBetween(column=column, min_value=low, max_value=high, description=description)
    return Rule(column, expectation, rows)


def _rows(condition: str, *shown: str, table: str = "{batch}") -> str:
    """Interactions that meet a condition; the columns that identify one open each row."""
    return f"SELECT {', '.join(('user_id, position, item_id', *shown))} FROM {table} WHERE {condition}"


def _repeated(columns: str) -> str:
    return f"SELECT {columns}, count(*) AS times FROM {{batch}} GROUP BY ALL HAVING count(*) > 1"


def _words(scale: Scale) -> str:
    low, high = scale
    bounds = [f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else ""]
    return " and ".join(filter(None, bounds)) or "a finite number"


def _outside(scale: Scale) -> str:
    low, high = scale
    bounds = [f"rating < {low!r}" if low is not None else "", f"rating > {high!r}" if high is not None else ""]
    return f"({' OR '.join(filter(None, ['NOT isfinite(rating)', *bounds]))})"
