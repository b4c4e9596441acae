"""Five Great Expectations suites for a batch.

Expectations about rows are queries; those about columns, splits and figures are Great Expectations' own and see frames
of a few rows. Data Docs and the command line show the descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import great_expectations.expectations as gxe
import pandas

from dti_pipeline.config import Config
from dti_pipeline.events.report import IngestReport
from dti_pipeline.validation import row_rules
from dti_pipeline.validation.expectations import Rule
from dti_pipeline.validation.report import Profile
from dti_pipeline.validation.tables import Tables

RAW_TYPES = {
    "line": "BIGINT", "raw": "VARCHAR", "user_id": "VARCHAR", "item_id": "VARCHAR", "rating": "DOUBLE",
    "timestamp": "BIGINT", "item_text": "VARCHAR", "reason": "VARCHAR",
}  # fmt: skip
CANONICAL_TYPES = {
    "user_id": "VARCHAR", "item_id": "VARCHAR", "item_text": "VARCHAR", "timestamp": "BIGINT", "rating": "DOUBLE",
    "label": "TINYINT", "split": "VARCHAR", "position": "INTEGER",
}  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """Rules over one batch. ``frame`` is what stock expectations see of it."""

    name: str
    asset: str  # what the batch is called in Data Docs and in the names of their files
    frame: pandas.DataFrame
    rules: list[Rule]


def raw(config: Config, tables: Tables, scale: row_rules.Scale) -> Suite:
    """Rows as they were read, good and bad: ``staged``, and ``parsed``, which adds the name of the source file."""
    rules = row_rules.parsed("parsed", config, scale)
    return _of_table("raw", "rows_as_read", tables.types("staged"), RAW_TYPES, rules)


def canonical(config: Config, tables: Tables, scale: row_rules.Scale) -> Suite:
    """The interactions that everything downstream reads."""
    rules = row_rules.values("interactions", config, scale) + row_rules.histories("interactions", config)
    return _of_table("canonical", "interactions", tables.types("interactions"), CANONICAL_TYPES, rules)


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
        LEFT JOIN (SELECT *, position >= {config.split.min_history} AS target FROM interactions) USING (split)
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


def batch(config: Config, profile: Profile, ledger: IngestReport) -> Suite:
    """The batch as a whole; ``ledger`` is ingestion's report."""
    limits = config.validation
    low, high = limits.label_rate
    lost = ledger.read - ledger.kept - ledger.quarantined - ledger.duplicates
    figures = [
        ("rows", profile.rows, f"There are at least {limits.min_rows:,} rows", limits.min_rows, None),
        ("users", profile.users, f"There are at least {limits.min_users:,} users", limits.min_users, None),
        ("label_rate", profile.label_rate, f"From {low:.1%} to {high:.1%} of the labels are 1", low, high),
        ("unaccounted_rows", lost, "Rows read = rows kept + quarantined + duplicates", 0, 0),
        ("rows_beside_ledger", profile.rows - ledger.kept,
            "The rows that are there are the rows that the ledger says were kept", 0, 0),
    ]  # fmt: skip
    return _of_figures("batch", "figures", figures)


def drift(config: Config, profile: Profile, previous: Profile) -> Suite:
    """This batch against the one that last passed."""
    rate, volume = config.validation.max_label_rate_drift, config.validation.min_volume_ratio
    figures = [
        ("label_rate_change", abs(profile.label_rate - previous.label_rate),
            f"The share of 1 among the labels is within {rate:g} of the previous accepted batch's"
            f" {previous.label_rate:.4f}", None, rate),
        ("volume_ratio", profile.rows / previous.rows,
            f"There are at least {volume:g} times the previous accepted batch's {previous.rows:,} rows", volume, None),
    ]  # fmt: skip
    return _of_figures("drift", "change_since_accepted", figures)


def _of_figures(name: str, asset: str, figures: Sequence[tuple[str, float, str, float | None, float | None]]) -> Suite:
    """Figures with their name, value, description, lowest and highest allowed value, in a frame of one row."""
    frame = pandas.DataFrame([{column: value for column, value, *_ in figures}])
    return Suite(name, asset, frame, [_figure(column, words, low, high) for column, _, words, low, high in figures])


def _figure(column: str, description: str, low: float | None, high: float | None, rows: str | None = None) -> Rule:
    """The bounds of a column's minimum: in a frame of one row that is the figure itself, which Data Docs then show."""
    expectation = gxe.ExpectColumnMinToBeBetween(column=column, min_value=low, max_value=high, description=description)
    return Rule(column, expectation, rows)
