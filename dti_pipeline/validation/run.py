"""Run suites: outcomes and Data Docs out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import great_expectations as gx
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types import base

from dti_pipeline.validation.docs import build
from dti_pipeline.validation.expectations import TABLES, Rule
from dti_pipeline.validation.report import Outcome
from dti_pipeline.validation.suites import Suite
from dti_pipeline.validation.tables import Tables


def run(
    suites: Iterable[Suite], tables: Tables, docs: Path, run_name: str, notes: Sequence[str] = (),
    load: str | None = None,
) -> list[Outcome]:  # fmt: skip
    """Validate each suite and build Data Docs into ``docs`` (its ``index.html``, with ``notes``, is the way in).

    Nothing is written anywhere else and nothing is sent anywhere. Raises duckdb.Error where the machine refuses a
    query files or memory. Cost: one query for each rule about rows.
    """
    TABLES.set(tables)
    context = _context(docs)
    source = context.data_sources.add_pandas("log")
    identifier = RunIdentifier(run_name=run_name)  # one for all suites, so that the index shows them side by side
    outcomes = []
    for suite in suites:
        for rule in suite.rules:
            rule.expectation.meta = {"rule": rule.name}
        expectations = [rule.expectation for rule in suite.rules]
        stored = context.suites.add(gx.ExpectationSuite(name=suite.name, expectations=expectations))
        batch = source.add_dataframe_asset(suite.asset).add_batch_definition_whole_dataframe(suite.asset)
        definition = gx.ValidationDefinition(name=suite.name, data=batch, suite=stored)
        answer = context.validation_definitions.add(definition).run(
            batch_parameters={"dataframe": suite.frame}, run_id=identifier
        )
        if tables.refused:  # which Great Expectations takes for a rule that the log breaks
            raise tables.refused[0]
        results = {result.expectation_config.meta["rule"]: result for result in answer.results}
        outcomes += [replace(_outcome(suite.name, rule, results[rule.name], tables), load=load) for rule in suite.rules]
    build(context, docs, outcomes, notes)
    return outcomes


def _context(docs: Path) -> Any:
    site = {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs).replace("$", r"\$")},
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder", "show_cta_footer": False},
    }
    config = base.DataContextConfig(
        store_backend_defaults=base.InMemoryStoreBackendDefaults(),
        data_docs_sites={"docs": site},
        analytics_enabled=False,
        progress_bars=base.ProgressBarsConfig(globally=False),
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def _outcome(suite: str, rule: Rule, answer: ExpectationValidationResult, tables: Tables) -> Outcome:
    expectation, found = rule.expectation, answer.result
    rows = found.get("unexpected_rows", [])
    if not answer.success and rule.rows:
        rows = tables.rows(rule.rows)
    return Outcome(
        suite=suite,
        name=rule.name,
        expectation=expectation.expectation_type,
        column=getattr(expectation, "column", None),
        success=bool(answer.success),
        expected=str(expectation.description),
        observed=_words(found.get("observed_value")),
        unexpected_count=int(found.get("unexpected_count", 0)),
        failing_rows=tuple(rows),
    )


def _words(observed: Any) -> str:
    if observed is None:
        return "not there"
    if isinstance(observed, list):
        return ", ".join(map(str, observed))
    if isinstance(observed, float):
        return f"{observed:,.6g}"
    return f"{observed:,}" if isinstance(observed, int) else str(observed)
