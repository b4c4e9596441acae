"""Validation of a batch: check it, publish the outcomes, remember it for the next one where it passed."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.events.published import INTERACTIONS
from dti_pipeline.events.report import IngestReport
from dti_pipeline.paths import Paths
from dti_pipeline.plain import from_plain, to_plain
from dti_pipeline.validation import suites
from dti_pipeline.validation.copies import copies
from dti_pipeline.validation.counts import counted
from dti_pipeline.validation.report import BatchKind, Profile, ValidateReport, report
from dti_pipeline.validation.run import run
from dti_pipeline.validation.tables import Tables, open_tables
from dti_pipeline.validation.timing import timing

log = logging.getLogger(__name__)

OUTCOMES = "outcomes.json"


@dataclass(frozen=True)
class _Memory:
    """``data/accepted.json``: the batch that last passed, and the one that it was measured against."""

    accepted: Profile
    compared_with: Profile | None


def validate(config: Config, paths: Paths) -> ValidateReport:
    """Check ``data/events`` and ``data/staged``; publish ``data/checks`` and ``reports/data_docs`` whatever they say.

    Raises CheckFailed, with the report, after publishing where an expectation failed and ``validation.required`` is
    true, InputError where there is nothing to check. Memory: ``events.memory_limit``.
    """
    events = artifacts.read(paths.events, "ingest", IngestReport)
    if INTERACTIONS not in events.files:
        raise InputError(f"{paths.events} has no {INTERACTIONS}: run `dti ingest` again")
    batch, scale = events.files[INTERACTIONS], events.report.rating_scale
    source_files = {name.removeprefix("log/"): md5 for name, md5 in events.inputs.items() if name.startswith("log/")}
    recorded = config.sections("events", "split", "validation") | {"packing": {"context": config.packing.context}}
    inputs = {"events": paths.events, "staged": paths.staged}
    with artifacts.publish(paths.checks, "validate", recorded, inputs) as draft:
        with (
            open_tables(config, paths, source_files) as tables,
            artifacts.publish(paths.data_docs, "validate", recorded) as docs,
        ):
            chosen = [suites.raw(config, tables, scale), suites.canonical(config, tables, scale, events.report.clock)]
            profile = previous = timed = copied = None
            # Figures of other columns would mean nothing.
            if tables.types("interactions") == suites.canonical_types(config):
                profile = _profile(config, tables, batch)
                tables.counted.update(counted(config, paths, chosen, source_files, profile.users))
                previous = _previous(paths, profile)
                timed, copied = timing(config, tables), copies(tables)
                chosen += [suites.splits(config, tables), suites.batch(config, tables, profile, events.report)]
                if previous:
                    chosen.append(suites.drift(config, profile, previous))
            notes = [
                *(timed.sentences() if timed else []),
                *([f"{copied.copies}."] if copied and copied.copies else []),
            ]
            outcomes = run(chosen, tables, docs.path, f"batch_{batch[:8]}", notes)
        artifacts.write_json(draft.path / OUTCOMES, to_plain(outcomes))
        found = draft.report = report(outcomes, profile, previous, timed, copied)
    if not found.success:
        if config.validation.required:
            raise CheckFailed(_sentence(found, paths), found)
        log.warning("%s; going on at your own risk, since `validation.required` is false", _sentence(found, paths))
        return found
    assert profile is not None  # its columns passed
    artifacts.write_json(paths.accepted, to_plain(_Memory(profile, previous)))
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


def _profile(config: Config, tables: Tables, batch: str) -> Profile:
    """Figures of a batch, named by its digest."""
    query = "SELECT count(*), count(DISTINCT user_id), coalesce(avg(label), 0) FROM interactions"
    (figures,) = tables.connection.execute(query).fetchall()
    return Profile(batch, BatchKind(config.events.source, config.split.label_threshold), *figures)


def _previous(paths: Paths, current: Profile) -> Profile | None:
    """The profile to compare with: of the batch accepted before this one, if it was of the same kind, else None.

    The accepted batch itself, validated again, meets what it met the first time, so that its outcomes are the same.
    Raises InputError for a file that cannot be read.
    """
    if not paths.accepted.is_file():
        return None
    try:
        memory: _Memory = from_plain(_Memory, json.loads(paths.accepted.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, InputError) as error:
        message = f"{paths.accepted} is not a profile of an accepted batch: remove it to start afresh"
        raise InputError(message) from error
    last = memory.compared_with if memory.accepted.batch == current.batch else memory.accepted
    return last if last and last.kind == current.kind else None
