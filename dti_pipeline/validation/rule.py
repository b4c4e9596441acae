"""An expectation with the name that people and orchestrators know it by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import great_expectations.expectations as gxe

from dti_pipeline.validation.expectations import ExpectUnexpectedRowsToBeAtMost


@dataclass(frozen=True)
class Rule:
    """``name`` is short, stable and unique in its suite."""

    name: str
    expectation: gxe.Expectation
    rows: str | None = None  # query for what to show when an expectation about a figure fails


class _RowRule(Protocol):
    def __call__(self, name: str, column: str | None, description: str, query: str, max_share: float = 0.0) -> Rule: ...


def unexpected_rows(table: str, max_shown_rows: int) -> _RowRule:
    """Rules about the rows of one table: at most ``max_share`` of them answer the query (``{batch}``: the table)."""

    def rule(name: str, column: str | None, description: str, query: str, max_share: float = 0.0) -> Rule:
        expectation = ExpectUnexpectedRowsToBeAtMost(
            table=table,
            column=column,
            description=description,
            unexpected_rows_query=query,
            max_share=max_share,
            max_shown_rows=max_shown_rows,
        )
        return Rule(name, expectation)

    return rule
