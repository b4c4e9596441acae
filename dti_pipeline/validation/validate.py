"""The stage: judge a batch, show what is wrong with it, remember it when nothing is."""

from __future__ import annotations

from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.paths import Paths
from dti_pipeline.validation import drift, outcome, suites
from dti_pipeline.validation.judge import judge
from dti_pipeline.validation.tables import open_tables

INTERACTIONS = "interactions.parquet"


def validate(config: Config, paths: Paths) -> dict[str, Any]:
    """Judge ``data/events`` and ``data/staged``; publish ``data/checks`` and ``reports/data_docs`` whatever they say.

    Returns counts, failures, the batch's profile and the one it was compared with (null: the first of its kind). Raises
    CheckFailed after publishing where an expectation failed, InputError where there is nothing to judge. Memory:
    ``events.memory_limit``.
    """
    events = artifacts.read(paths.events, "ingest")
    if INTERACTIONS not in events.files:
        raise InputError(f"{paths.events} has no {INTERACTIONS}: run `dti ingest` again")
    batch = events.files[INTERACTIONS]
    scale = tuple(events.report["rating_scale"])
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
            outcomes = judge(chosen, tables, docs.path, f"batch_{batch[:8]}", config.validation.max_shown_rows)
        outcome.write(draft.path, outcomes)
        draft.report = outcome.summarise(outcomes) | {"profile": profile, "compared_with": previous}
        draft.report["drift"] = (
            f"against the accepted batch {previous['batch'][:8]} of {previous['rows']:,} rows"
            if previous
            else "nothing to compare with: no batch of this kind was accepted before"
        )
    if not draft.report["success"]:
        raise CheckFailed(_sentence(draft.report, paths))
    assert profile is not None  # its columns passed
    drift.accept(paths, profile, previous)
    return draft.report


def _sentence(report: dict[str, Any], paths: Paths) -> str:
    first = report["failures"][0]
    drifted = report["suites"].get("drift", {}).get("failed")
    afresh = f" (if the drift is meant, remove {paths.accepted})" if drifted else ""
    return (
        f"{report['failed']} of {report['expectations']} checks failed, first {first['suite']}.{first['name']}:"
        f" expected: {first['expected']}; observed: {first['observed']}{afresh};"
        f" rows in {paths.checks / outcome.OUTCOMES} and {paths.data_docs / 'index.html'}"
    )
