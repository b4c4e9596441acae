"""The stage: check a batch, show what is wrong with it, remember it when nothing is."""

from __future__ import annotations

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.events.ingest import INTERACTIONS
from dti_pipeline.events.report import IngestReport
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from dti_pipeline.validation import drift, suites
from dti_pipeline.validation.report import ValidateReport, report
from dti_pipeline.validation.run import run
from dti_pipeline.validation.tables import open_tables

OUTCOMES = "outcomes.json"


def validate(config: Config, paths: Paths) -> ValidateReport:
    """Check ``data/events`` and ``data/staged``; publish ``data/checks`` and ``reports/data_docs`` whatever they say.

    Raises CheckFailed, with the report, after publishing where an expectation failed, InputError where there is nothing
    to check. Memory: ``events.memory_limit``.
    """
    events = artifacts.read(paths.events, "ingest", IngestReport)
    if INTERACTIONS not in events.files:
        raise InputError(f"{paths.events} has no {INTERACTIONS}: run `dti ingest` again")
    batch, scale = events.files[INTERACTIONS], events.report.rating_scale
    source_files = {name.removeprefix("log/"): md5 for name, md5 in events.inputs.items() if name.startswith("log/")}
    recorded = config.sections("events", "split", "validation")
    inputs = {"events": paths.events, "staged": paths.staged}
    with artifacts.publish(paths.checks, "validate", recorded, inputs) as draft:
        with (
            open_tables(paths.staged, paths.events / INTERACTIONS, source_files, config.events.memory_limit) as tables,
            artifacts.publish(paths.data_docs, "validate", recorded) as docs,
        ):
            chosen = [suites.raw(config, tables, scale), suites.canonical(config, tables, scale)]
            profile = previous = None
            if tables.types("interactions") == suites.CANONICAL_TYPES:  # figures of other columns would mean nothing
                profile = drift.profile(config, tables, batch)
                previous = drift.previous(paths, profile)
                chosen += [suites.splits(config, tables), suites.batch(config, profile, events.report)]
                if previous:
                    chosen.append(suites.drift(config, profile, previous))
            outcomes = run(chosen, tables, docs.path, f"batch_{batch[:8]}", config.validation.max_shown_rows)
        artifacts.write_json(draft.path / OUTCOMES, to_plain(outcomes))
        found = draft.report = report(outcomes, profile, previous)
    if not found.success:
        raise CheckFailed(_sentence(found, paths), found)
    assert profile is not None  # its columns passed
    drift.accept(paths, profile, previous)
    return found


def _sentence(report: ValidateReport, paths: Paths) -> str:
    first = report.failures[0]
    drifted = "drift" in report.suites and report.suites["drift"].failed
    afresh = f" (if the drift is meant, remove {paths.accepted})" if drifted else ""
    return (
        f"{report.failed} of {report.expectations} checks failed, first {first.suite}.{first.name}:"
        f" expected: {first.expected}; observed: {first.observed}{afresh};"
        f" rows in {paths.checks / OUTCOMES} and {paths.data_docs / 'index.html'}"
    )
