"""Expectations about single rows. Each rule is the query that finds the rows that break it."""

from __future__ import annotations

from functools import partial

from dti_pipeline.config import Config
from dti_pipeline.validation.expectations import Rule, unexpected_rows

# The rating scale of the log: lowest and highest, None where it is open.
Scale = tuple[float | None, float | None]
# Each row beside the one before it in the file: a streaming window, constant memory at any size.
_HISTORY = """
    SELECT *, lag(user_id) OVER () AS previous_user, lag(position) OVER () AS previous_position,
        lag(timestamp) OVER () AS previous_timestamp, lag(split) OVER () AS previous_split
    FROM {batch}
"""


def parsed(table: str, config: Config, scale: Scale) -> list[Rule]:
    """Rows as they were read; ``reason`` says why a row was refused, null where it was not."""
    rule, share = partial(unexpected_rows, table), config.validation.max_quarantined_share
    refused = "SELECT source_file, line, reason, raw FROM {batch} WHERE reason IS NOT NULL"
    good = "SELECT source_file, line, user_id, item_id, {} FROM {{batch}} WHERE reason IS NULL AND {}".format
    return [
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


def values(table: str, config: Config, scale: Scale) -> list[Rule]:
    """The values of canonical interactions, each row by itself, and items the same wherever they occur."""
    rule = partial(unexpected_rows, table)
    threshold, share = config.split.label_threshold, config.validation.max_untitled_share
    return [
        *(
            rule(f"{column}_not_null", column, f"No row lacks its {column}", _rows(f"{column} IS NULL"))
            for column in ("user_id", "item_id", "item_text", "rating", "label", "split", "position")
        ),
        rule("timestamp_not_null", "timestamp", "No row lacks its time, unless the log has no clock at all",
            _rows("timestamp IS NULL AND (SELECT count(timestamp) FROM {batch}) > 0")),
        rule("rating_range", "rating", f"A rating is {_words(scale)}", _rows(_outside(scale), "rating")),
        rule("label_set", "label", "A label is 0 or 1", _rows("label NOT IN (0, 1)", "label")),
        rule("label_of_rating", "label", f"The label is 1 where the rating is above {threshold:g}, else 0",
            _rows(f"label IN (0, 1) AND label <> (rating > {threshold!r})::TINYINT", "rating", "label")),
        rule("split_set", "split", "A split is train, validation or test",
            _rows("split NOT IN ('train', 'validation', 'test')", "split")),
        rule("item_text_not_blank", "item_text", "An item's text says something",
            _rows("trim(item_text) = ''", "item_text")),
        rule("item_one_text", "item_text", "An item has one text wherever it occurs",
            "SELECT item_id, min(item_text) AS one_text, max(item_text) AS other_text FROM {batch}"
            " GROUP BY item_id HAVING min(item_text) <> max(item_text)"),
        rule("untitled_share", "item_text",
            f"At most {share:.2%} of the rows are of items without a title of their own",
            _rows("item_text = 'item ' || item_id", "item_text"),  # of an item without a title
            share),
    ]  # fmt: skip


def histories(table: str, config: Config) -> list[Rule]:
    """The order of rows: places and times within a user, and the order of the splits."""
    rule = partial(unexpected_rows, table)
    rank = "list_position(['train', 'validation', 'test'], {})"
    rules = [
        rule("interaction_unique", None,
            "A rating is there once: user, item, time and rating together are unique",
            _repeated("user_id, item_id, timestamp, rating")),
        rule("position_unique", "position", "A user has one row at a position", _repeated("user_id, position")),
        rule("position_contiguous", "position",
            "A user's rows stand together, their positions count 0, 1, 2, ...",
            _rows("position IS DISTINCT FROM CASE WHEN user_id = previous_user THEN previous_position + 1 ELSE 0 END",
                "previous_position", table=f"({_HISTORY})")),
        rule("time_monotone", "timestamp", "Time never runs backwards within a user",
            _rows("user_id = previous_user AND timestamp < previous_timestamp",
                "timestamp", "previous_timestamp", table=f"({_HISTORY})")),
        rule("split_order", "split", "Within a user, train comes before validation and validation before test",
            _rows(f"user_id = previous_user AND {rank.format('split')} < {rank.format('previous_split')}",
                "split", "previous_split", table=f"({_HISTORY})")),
        rule("split_clock", "split",
            "On the one clock of all users, train ends before validation begins and validation before test",
            _rows("(split = 'train' AND timestamp >= least(validation_start, test_start))"
                " OR (split = 'validation' AND timestamp >= test_start)",
                "split", "timestamp", table="{batch}, (SELECT"
                " min(timestamp) FILTER (split = 'validation') AS validation_start,"
                " min(timestamp) FILTER (split = 'test') AS test_start FROM {batch})")),
    ]  # fmt: skip
    return rules if config.split.rule == "global_time" else rules[:-1]


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
