"""Great Expectations' ``UnexpectedRowsExpectation``, run by DuckDB.

Great Expectations 1.x reaches DuckDB only through SQLAlchemy, where most expectations fail (its issues 10738, 11579).
Overriding ``_validate`` is the extension point its own documentation names.
"""

from __future__ import annotations

import html
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import great_expectations.expectations as gxe
from great_expectations.render import LegacyDiagnosticRendererType, RenderedTableContent
from great_expectations.render.renderer.renderer import renderer

from dti_pipeline.validation.tables import Tables

#: The tables that expectations ask: Great Expectations rebuilds these from plain values, which hold no connection.
TABLES: ContextVar[Tables] = ContextVar("tables")


class ExpectUnexpectedRowsToBeAtMost(gxe.UnexpectedRowsExpectation):
    """The query finds at most ``max_share`` of the batch's rows; those it finds are what is wrong.

    A result holds ``observed_value`` (plain words), ``unexpected_count`` and ``unexpected_rows``, the first by value.
    """

    table: str  # {batch} in the query
    column: str | None = None  # Data Docs file the expectation under it; None: it is about whole rows
    max_share: float = 0.0  # of the table's rows, in [0, 1]

    metric_dependencies: ClassVar[tuple[str, ...]] = ()
    success_keys: ClassVar[tuple[str, ...]] = ("unexpected_rows_query", "max_share")
    domain_keys: ClassVar[tuple[str, ...]] = ("batch_id", "table", "column")

    @property
    def query(self) -> str:
        return str(self.unexpected_rows_query).replace("{batch}", self.table)

    def _validate(
        self, metrics: dict[str, Any], runtime_configuration: Any = None, execution_engine: Any = None
    ) -> dict[str, Any]:
        tables = TABLES.get()
        found = tables.count(self.query)
        total = tables.count(f"FROM {self.table}")
        success = found <= self.max_share * total
        return {
            "success": success,
            "result": {
                "observed_value": f"{found:,} of {total:,} rows",
                "element_count": total,
                "unexpected_count": found,
                "unexpected_percent": 100 * found / max(total, 1),
                "unexpected_rows": [] if success else tables.rows(self.query),
            },
        }

    @classmethod
    @renderer(renderer_type=LegacyDiagnosticRendererType.UNEXPECTED_TABLE)
    def _diagnostic_unexpected_table_renderer(
        cls, configuration: Any = None, result: Any = None, runtime_configuration: Any = None
    ) -> list[RenderedTableContent] | None:
        rows = result.result.get("unexpected_rows") if result is not None else None
        if not rows:
            return None
        return [
            RenderedTableContent(
                content_block_type="table",
                header_row=[html.escape(name) for name in rows[0]],
                table=[
                    ["null" if value is None else html.escape(str(value)) for value in row.values()] for row in rows
                ],
                styling={"body": {"classes": ["table-bordered", "table-sm", "mt-3"]}},
            )
        ]


@dataclass(frozen=True)
class Rule:
    """An expectation with the name that people and orchestrators know it by: short, stable, unique in its suite."""

    name: str
    expectation: gxe.Expectation
    rows: str | None = None  # query for the rows to show when an expectation about a figure fails
    whole_log: bool = False  # its rows cannot be counted in parts of the log


def unexpected_rows(
    table: str,
    name: str,
    column: str | None,
    description: str,
    query: str,
    max_share: float = 0.0,
    *,
    whole_log: bool = False,
) -> Rule:
    """At most ``max_share`` of the rows of a table answer ``query``, in which ``{batch}`` stands for the table."""
    expectation = ExpectUnexpectedRowsToBeAtMost(
        table=table, column=column, description=description, unexpected_rows_query=query, max_share=max_share
    )
    return Rule(name, expectation, whole_log=whole_log)
