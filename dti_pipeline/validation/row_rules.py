"""Expectations about single rows. Each rule is the query that finds the rows that break it."""

from __future__ import annotations

from dti_pipeline.config import Config
from dti_pipeline.validation.rule import Rule, unexpected_rows

# The columns that identify an interaction open every list of failing rows.
_ROW = "user_id, position, item_id"
_LINE = "source_file, line, user_id, item_id"
# The rating scale of the log: lowest and highest, None where it is open.
Scale = tuple[float | None, float | None]
# Each row beside the one before it in the file: a streaming window, constant memory at any size.
_HISTORY = """
    SELECT *, lag(user_id) OVER () AS previous_user, lag(position) OVER () AS previous_position,
        lag(timestamp) OVER () AS previous_timestamp, lag(split) OVER () AS previous_split
    FROM {batch}
"""


def parsed(config: Config, table: str, scale: Scale) -> list[Rule]:
    """Rows as they were read; ``reason`` says why a row was refused, null where it was not."""
    share = config.validation.max_quarantined_share
    rule = unexpected_rows(table, config.validation.max_shown_rows)
    return [
        rule(
            "line_unique",
            "line",
            "A line of a raw file is read once",
            "SELECT source_file, line, count(*) AS times FROM {batch} GROUP BY ALL HAVING count(*) > 1",
        ),
        rule(
            "refused_row_kept",
            "raw",
            "A refused row keeps its line number and its text",
            "SELECT source_file, line, reason, raw FROM {batch}"
            " WHERE reason IS NOT NULL AND (raw IS NULL OR line IS NULL)",
        ),
        *(
            rule(
                f"{column}_not_null",
                column,
                f"A row that was not refused has its {column}",
                f"SELECT {_LINE}, rating FROM {{batch}} WHERE reason IS NULL AND {column} IS NULL",
            )
            for column in ("user_id", "item_id", "rating")
        ),
        rule(
            "rating_range",
            "rating",
            f"A row that was not refused has a rating {_words(scale)}",
            f"SELECT {_LINE}, rating FROM {{batch}} WHERE reason IS NULL AND {_outside('rating', scale)}",
        ),
        rule(
            "timestamp_range",
            "timestamp",
            "A time is not before 1970",
            f"SELECT {_LINE}, timestamp FROM {{batch}} WHERE reason IS NULL AND timestamp < 0",
        ),
        rule(
            "refused_share",
            "reason",
            f"At most {share:.2%} of the rows read were refused",
            "SELECT source_file, line, reason, raw FROM {batch} WHERE reason IS NOT NULL",
            max_share=share,
        ),
    ]


def values(config: Config, table: str, scale: Scale) -> list[Rule]:
    """The values of canonical interactions, each row by itself, and items the same wherever they occur."""
    threshold, share = config.split.label_threshold, config.validation.max_untitled_share
    rule = unexpected_rows(table, config.validation.max_shown_rows)
    return [
        *(
            rule(
                f"{column}_not_null",
                column,
                f"No row lacks its {column}",
                f"SELECT {_ROW} FROM {{batch}} WHERE {column} IS NULL",
            )
            for column in ("user_id", "item_id", "item_text", "rating", "label", "split", "position")
        ),
        rule(
            "timestamp_not_null",
            "timestamp",
            "No row lacks its time, unless the log has no clock at all",
            f"SELECT {_ROW} FROM {{batch}} WHERE timestamp IS NULL AND (SELECT count(timestamp) FROM {{batch}}) > 0",
        ),
        rule(
            "rating_range",
            "rating",
            f"A rating is {_words(scale)}",
            f"SELECT {_ROW}, rating FROM {{batch}} WHERE {_outside('rating', scale)}",
        ),
        rule(
            "label_set",
            "label",
            "A label is 0 or 1",
            f"SELECT {_ROW}, label FROM {{batch}} WHERE label NOT IN (0, 1)",
        ),
        rule(
            "label_of_rating",
            "label",
            f"The label is 1 where the rating is above {threshold:g}, else 0",
            f"SELECT {_ROW}, rating, label FROM {{batch}}"
            f" WHERE label IN (0, 1) AND label <> (rating > {threshold!r})::TINYINT",
        ),
        rule(
            "split_set",
            "split",
            "A split is train, validation or test",
            f"SELECT {_ROW}, split FROM {{batch}} WHERE split NOT IN ('train', 'validation', 'test')",
        ),
        rule(
            "item_text_not_blank",
            "item_text",
            "An item's text says something",
            f"SELECT {_ROW}, item_text FROM {{batch}} WHERE trim(item_text) = ''",
        ),
        rule(
            "item_one_text",
            "item_text",
            "An item has one text wherever it occurs",
            "SELECT item_id, min(item_text) AS one_text, max(item_text) AS other_text FROM {batch}"
            " GROUP BY item_id HAVING min(item_text) <> max(item_text)",
        ),
        rule(
            "untitled_share",
            "item_text",
            f"At most {share:.2%} of the rows are of items without a title of their own",
            # Ingestion writes this for an item that no title came with.
            f"SELECT {_ROW}, item_text FROM {{batch}} WHERE item_text = 'item ' || item_id",
            max_share=share,
        ),
    ]


def histories(config: Config, table: str) -> list[Rule]:
    """The order of rows: places and times within a user, and the order of the splits."""
    rule = unexpected_rows(table, config.validation.max_shown_rows)
    rank = "list_position(['train', 'validation', 'test'], {})"
    rules = [
        rule(
            "interaction_unique",
            None,
            "A rating is there once: user, item, time and rating together are unique",
            "SELECT user_id, item_id, timestamp, rating, count(*) AS times FROM {batch}"
            " GROUP BY ALL HAVING count(*) > 1",
        ),
        rule(
            "position_unique",
            "position",
            "A user has one row at a position",
            "SELECT user_id, position, count(*) AS times FROM {batch} GROUP BY ALL HAVING count(*) > 1",
        ),
        rule(
            "position_contiguous",
            "position",
            "A user's rows stand together, their positions count 0, 1, 2, ...",
            f"SELECT {_ROW}, previous_position FROM ({_HISTORY}) WHERE position IS DISTINCT FROM"
            " CASE WHEN user_id = previous_user THEN previous_position + 1 ELSE 0 END",
        ),
        rule(
            "time_monotone",
            "timestamp",
            "Time never runs backwards within a user",
            f"SELECT {_ROW}, timestamp, previous_timestamp FROM ({_HISTORY})"
            " WHERE user_id = previous_user AND timestamp < previous_timestamp",
        ),
        rule(
            "split_order",
            "split",
            "Within a user, train comes before validation and validation before test",
            f"SELECT {_ROW}, split, previous_split FROM ({_HISTORY})"
            f" WHERE user_id = previous_user AND {rank.format('split')} < {rank.format('previous_split')}",
        ),
    ]
    if config.split.rule == "global_time":
        rules.append(
            rule(
                "split_clock",
                "split",
                "On the one clock of all users, train ends before validation begins and validation before test",
                f"SELECT {_ROW}, split, timestamp FROM {{batch}}, (SELECT"
                " min(timestamp) FILTER (split = 'validation') AS validation_start,"
                " min(timestamp) FILTER (split = 'test') AS test_start FROM {batch})"
                " WHERE (split = 'train' AND timestamp >= least(validation_start, test_start))"
                " OR (split = 'validation' AND timestamp >= test_start)",
            )
        )
    return rules


def _words(scale: Scale) -> str:
    low, high = scale
    bounds = [f"at least {low:g}" if low is not None else "", f"at most {high:g}" if high is not None else ""]
    return " and ".join(filter(None, bounds)) or "a finite number"


def _outside(column: str, scale: Scale) -> str:
    low, high = scale
    bounds = [f"{column} < {low!r}" if low is not None else "", f"{column} > {high!r}" if high is not None else ""]
    return f"({' OR '.join(filter(None, [f'NOT isfinite({column})', *bounds]))})"
