"""Validation of a batch: check it, publish the outcomes, remember it for the next one where it passed."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.artifacts import Manifest
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.events import published
from dti_pipeline.events.report import IngestReport, LoadReport
from dti_pipeline.paths import Paths
from dti_pipeline.plain import from_plain, to_plain
from dti_pipeline.validation import suites
from dti_pipeline.validation.copies import copies
from dti_pipeline.validation.counts import counted
from dti_pipeline.validation.docs import list_loads
from dti_pipeline.validation.report import (
    BatchKind,
    CheckedLoad,
    Copies,
    Outcome,
    Profile,
    Timing,
    ValidateReport,
    report,
)
from dti_pipeline.validation.run import run
from dti_pipeline.validation.tables import Batch, Tables, batches, open_tables
from dti_pipeline.validation.timing import timing

log = logging.getLogger(__name__)

OUTCOMES = "outcomes.json"
LOADS_VERSION = 1  # of the rules; goes into the key of a load that was checked


@dataclass(frozen=True)
class _Memory:
    """``data/accepted.json``: the batch that last passed, and the one that it was measured against."""

    accepted: Profile
    compared_with: Profile | None


@dataclass(frozen=True)
class _Checked:
    """What the checks of a batch found; ``timing`` and ``copies`` of a whole log, or the files before all loads."""

    load: CheckedLoad
    outcomes: list[Outcome]
    timing: Timing | None = None
    copies: Copies | None = None


def validate(config: Config, paths: Paths) -> ValidateReport:
    """Check ``data/events`` and ``data/staged``; publish ``data/checks`` and ``reports/data_docs`` whatever they say.

    Each load is a batch of its own, and one that was checked by the same rules is not checked again; its pages lie in
    ``loads/1`` and so on.
    Raises CheckFailed, with the report, after publishing where an expectation failed and ``validation.required`` is
    true, InputError where there is nothing to check. Memory: ``events.memory_limit``.
    """
    events = artifacts.read(paths.events, "ingest", IngestReport)
    if published.INTERACTIONS not in events.files:
        raise InputError(f"{paths.events} has no {published.INTERACTIONS}: run `dti ingest` again")
    recorded = config.sections("events", "split", "validation") | {"packing": {"context": config.packing.context}}
    inputs = {"events": paths.events, "staged": paths.staged}
    checked: list[_Checked] = []
    with artifacts.publish(paths.checks, "validate", recorded, inputs) as draft:
        with artifacts.publish(paths.data_docs, "validate", recorded) as docs:
            before = _checked_before(paths) if events.report.loads is not None else {}
            for batch in batches(events, paths):
                key, folder = _key(batch, recorded), published.load_folder(docs.path, batch.number)
                if there := before.get((batch.number, key)):
                    _keep(published.load_folder(paths.data_docs, batch.number), folder)
                    checked.append(there)
                else:
                    folder.mkdir(parents=True, exist_ok=True)
                    checked.append(_check(config, paths, events, batch, key, folder, [one.load for one in checked]))
            if events.report.loads is not None:
                list_loads(docs.path, [(one.load.name, one.outcomes) for one in checked])
        outcomes = [outcome for one in checked for outcome in one.outcomes]
        artifacts.write_json(draft.path / OUTCOMES, to_plain(outcomes, whole=False))
        first, loads = checked[0], [one.load for one in checked]
        found = draft.report = report(
            outcomes, first.load.profile, first.load.compared_with, first.timing, first.copies,
            None if events.report.loads is None else loads,
        )  # fmt: skip
    if not found.success:
        if config.validation.required:
            raise CheckFailed(_sentence(found, paths), found)
        log.warning("%s; going on at your own risk, since `validation.required` is false", _sentence(found, paths))
        return found
    assert first.load.profile is not None  # its columns passed
    artifacts.write_json(paths.accepted, to_plain(_Memory(first.load.profile, first.load.compared_with)))
    return found


def _check(
    config: Config, paths: Paths, events: Manifest[IngestReport], batch: Batch, key: str, docs: Path,
    before: Sequence[CheckedLoad],
) -> _Checked:  # fmt: skip
    """Check a batch, and build its pages into ``docs``; ``before``: the loads before it."""
    load, scale, digest = bool(batch.number), events.report.rating_scale, artifacts.file_digest(batch.interactions)
    with open_tables(config, paths, batch) as tables:
        chosen = [
            suites.raw(config, tables, scale),
            suites.canonical(config, tables, scale, events.report.clock, load),
        ]
        profile = previous = timed = copied = None
        # Figures of other columns would mean nothing.
        if tables.types("interactions") == suites.canonical_types(config):
            profile = _profile(config, tables, digest)
            if load:
                previous = _load_before(before, config.validation.min_rows)
            else:
                tables.counted.update(counted(config, paths, chosen, batch, profile.users))
                previous = _previous(paths, profile)
                timed, copied = timing(config, tables), copies(tables)
                chosen.append(suites.splits(config, tables))
            chosen.append(suites.batch(config, tables, profile, batch.ledger, load))
            if previous:
                chosen.append(suites.drift(config, profile, previous, load))
        notes = [
            *(timed.sentences() if timed else []),
            *([f"{copied.copies}."] if copied and copied.copies else []),
        ]
        outcomes = run(chosen, tables, docs, f"batch_{digest[:8]}", notes, batch.name)
    return _Checked(CheckedLoad(batch.name, key, profile, previous), outcomes, timed, copied)


def _load_before(before: Sequence[CheckedLoad], least: int) -> Profile | None:
    """The load that drift is measured by: the last with rows enough, but for the files before all loads, which are no
    day's."""
    return next((one.profile for one in reversed(before[1:]) if one.profile and one.profile.rows >= least), None)


def _key(batch: Batch, recorded: Mapping[str, Any]) -> str:
    """Digest of what is checked, and by which rules. Of a load it holds what is before it, and so what drift is
    measured by."""
    made_of = batch.ledger.key if isinstance(batch.ledger, LoadReport) else ""
    return artifacts.content_digest([LOADS_VERSION, recorded, made_of, artifacts.file_digest(batch.interactions)])


def _checked_before(paths: Paths) -> dict[tuple[int, str], _Checked]:
    """Batches that were checked, by number and key; none where their outcomes or pages are not whole."""
    with suppress(InputError):
        found = artifacts.read(paths.checks, "validate", ValidateReport).report
        artifacts.read(paths.data_docs, "validate")
        rows = json.loads((paths.checks / OUTCOMES).read_text(encoding="utf-8"))
        outcomes = [from_plain(Outcome, row) for row in rows]
        checked = {
            (number, load.key): _Checked(load, [one for one in outcomes if one.load == load.name])
            for number, load in enumerate(found.loads or ())
        }
        return {
            (number, key): replace(one, timing=found.timing(), copies=found.of_copies()) if number == 0 else one
            for (number, key), one in checked.items()
        }
    return {}


def _keep(before: Path, now: Path) -> None:
    """Take the pages of a batch from one folder into another."""
    shutil.copytree(before, now, dirs_exist_ok=True, ignore=shutil.ignore_patterns(artifacts.MANIFEST, "loads"))


def _sentence(report: ValidateReport, paths: Paths) -> str:
    first = report.failures[0]
    drifted = "drift" in report.suites and report.suites["drift"].failed
    afresh = f" (if the drift is meant, remove {paths.accepted})" if drifted else ""
    return (
        f"{report.failed} of {report.expectations} checks failed, first {first.title}:"
        f" expected: {first.expected}; observed: {first.observed}{afresh};"
        f" rows in {paths.checks / OUTCOMES} and {paths.data_docs / 'index.html'}"
    )


def _profile(config: Config, tables: Tables, batch: str) -> Profile:
    """Figures of a batch, named by its digest."""
    query = (
        "SELECT count(*), count(DISTINCT user_id), coalesce(avg(label), 0) FROM interactions"
        f" WHERE split IS DISTINCT FROM '{published.CONTEXT}'"
    )
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
