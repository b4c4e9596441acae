"""Five Great Expectations suites for a batch.

Expectations about rows are queries (see row_rules); those about columns, splits and figures are stock and see frames
of a few rows. Descriptions are what people read, in Data Docs and on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import great_expectations.expectations as gxe
import pandas

from dti_pipeline.config import Config
from dti_pipeline.events.report import IngestReport
from dti_pipeline.validation import row_rules
from dti_pipeline.validation.report import Profile
from dti_pipeline.validation.rule import Rule
from dti_pipeline.validation.tables import Tables

RAW_TYPES = {
    "line": "BIGINT",
    "raw": "VARCHAR",
    "user_id": "VARCHAR",
    "item_id": "VARCHAR",
    "rating": "DOUBLE",
    "timestamp": "BIGINT",
    "item_text": "VARCHAR",
    "reason": "VARCHAR",
}
CANONICAL_TYPES = {
    "user_id": "VARCHAR",
    "item_id": "VARCHAR",
    "item_text": "VARCHAR",
    "timestamp": "BIGINT",
    "rating": "DOUBLE",
    "label": "TINYINT",
    "split": "VARCHAR",
    "position": "INTEGER",
}


@dataclass(frozen=True)
class Suite:
    """Rules over one batch. ``frame`` is what stock expectations see of it."""

    name: str
    asset: str  # what the batch is called in Data Docs and in the names of their files
    frame: pandas.DataFrame
    rules: list[Rule]


def raw(config: Config, tables: Tables, scale: row_rules.Scale) -> Suite:
    """Rows as they were read, good and bad: ``staged``, and ``parsed``, which adds the name of the source file."""
    types = tables.types("staged")
    rules = _schema(RAW_TYPES)
    if types == RAW_TYPES:  # rules about rows name its columns
        rules += row_rules.parsed(config, "parsed", scale)
    return Suite("raw", "rows_as_read", pandas.DataFrame([types]), rules)


def canonical(config: Config, tables: Tables, scale: row_rules.Scale) -> Suite:
    """The interactions that everything downstream reads."""
    types = tables.types("interactions")
    rules = _schema(CANONICAL_TYPES)
    if types == CANONICAL_TYPES:
        rules += row_rules.values(config, "interactions", scale) + row_rules.histories(config, "interactions")
    return Suite("canonical", "interactions", pandas.DataFrame([types]), rules)


def _schema(types: Mapping[str, str]) -> list[Rule]:
    """Rules on a frame with one row: the table's own columns, each holding the name of its type."""
    columns = gxe.ExpectTableColumnsToMatchOrderedList(
        column_list=list(types), description="The columns are " + ", ".join(types)
    )
    return [
        Rule("columns", columns),
        *(
            Rule(
                f"{column}_type",
                gxe.ExpectColumnMostCommonValueToBeInSet(
                    column=column, value_set=[kind], description=f"{column} is of type {kind}"
                ),
            )
            for column, kind in types.items()
        ),
    ]


def splits(config: Config, tables: Tables) -> Suite:
    """One row for each split; a target is a row with enough history to be predicted."""
    asked = ["train", "validation", "test"] if config.split.validation_share else ["train", "test"]
    needed, order = config.validation.min_targets, str(asked)
    query = f"""
        SELECT split, count(user_id) AS rows, count(*) FILTER (target) AS targets,
            count(*) FILTER (target AND label = 1) AS clicks, count(*) FILTER (target AND label = 0) AS skips
        FROM (SELECT unnest({order}) AS split)
        LEFT JOIN (SELECT *, position >= {config.split.min_history} AS target FROM interactions) USING (split)
        GROUP BY split
    """
    minima = {
        "targets": (needed, f"Every split has at least {needed:,} targets"),
        "clicks": (1, "The targets of every split include clicks (label 1)"),
        "skips": (1, "The targets of every split include skips (label 0)"),
    }
    rules = [
        Rule(
            column,
            gxe.ExpectColumnMinToBeBetween(column=column, min_value=minimum, description=words),
            rows=f"FROM ({query}) WHERE {column} < {minimum}",
        )
        for column, (minimum, words) in minima.items()
    ]
    return Suite("splits", "splits", tables.frame(f"FROM ({query}) ORDER BY list_position({order}, split)"), rules)


def batch(config: Config, profile: Profile, ledger: IngestReport) -> Suite:
    """The batch as a whole; ``ledger`` is ingestion's report."""
    limits = config.validation
    low, high = limits.label_rate
    figures = {
        "rows": profile.rows,
        "users": profile.users,
        "label_rate": profile.label_rate,
        "unaccounted_rows": ledger.read - ledger.kept - ledger.quarantined - ledger.duplicates,
        "rows_beside_ledger": profile.rows - ledger.kept,
    }
    rules = [
        _figure("rows", f"There are at least {limits.min_rows:,} rows", limits.min_rows, None),
        _figure("users", f"There are at least {limits.min_users:,} users", limits.min_users, None),
        _figure("label_rate", f"From {low:.1%} to {high:.1%} of the labels are 1", low, high),
        _figure("unaccounted_rows", "Rows read = rows kept + quarantined + duplicates", 0, 0),
        _figure("rows_beside_ledger", "The rows that are there are the rows that the ledger says were kept", 0, 0),
    ]
    return Suite("batch", "figures", pandas.DataFrame([figures]), rules)


def drift(config: Config, profile: Profile, previous: Profile) -> Suite:
    """This batch against the one that last passed."""
    limits = config.validation
    figures = {
        "label_rate_change": abs(profile.label_rate - previous.label_rate),
        "volume_ratio": profile.rows / previous.rows,
    }
    rate = (
        f"The share of 1 among the labels is within {limits.max_label_rate_drift:g}"
        f" of the previous accepted batch's {previous.label_rate:.4f}"
    )
    volume = (
        f"There are at least {limits.min_volume_ratio:g} times the previous accepted batch's {previous.rows:,} rows"
    )
    rules = [
        _figure("label_rate_change", rate, None, limits.max_label_rate_drift),
        _figure("volume_ratio", volume, limits.min_volume_ratio, None),
    ]
    return Suite("drift", "change_since_accepted", pandas.DataFrame([figures]), rules)


def _figure(column: str, description: str, low: float | None, high: float | None) -> Rule:
    # In a frame of one row the minimum is the figure itself, which Data Docs then show as observed.
    return Rule(
        column,
        gxe.ExpectColumnMinToBeBetween(column=column, min_value=low, max_value=high, description=description),
    )
