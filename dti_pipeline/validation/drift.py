"""Drift baseline: the profile of the batch that last passed, for the next one to be compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.plain import from_plain, to_plain
from dti_pipeline.validation.report import BatchKind, Profile
from dti_pipeline.validation.tables import Tables


@dataclass(frozen=True)
class _Memory:
    """``data/accepted.json``."""

    accepted: Profile
    compared_with: Profile | None


def profile(config: Config, tables: Tables, batch: str) -> Profile:
    """Figures of a batch, named by its digest."""
    (figures,) = tables.rows(
        "SELECT count(*) AS rows, count(DISTINCT user_id) AS users, coalesce(avg(label), 0) AS label_rate"
        " FROM interactions",
        limit=1,
    )
    return Profile(batch, BatchKind(config.events.source, config.split.label_threshold), **figures)


def previous(paths: Paths, current: Profile) -> Profile | None:
    """The profile to compare with: of the batch accepted before this one, if it was of the same kind, else None.

    The accepted batch itself, validated again, meets what it met the first time, so that its outcomes are the same.
    Raises InputError for a file that cannot be read.
    """
    if not paths.accepted.is_file():
        return None
    try:
        memory: _Memory = from_plain(_Memory, json.loads(paths.accepted.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, InputError) as error:
        raise InputError(
            f"{paths.accepted} is not a profile of an accepted batch: remove it to start afresh"
        ) from error
    last = memory.compared_with if memory.accepted.batch == current.batch else memory.accepted
    return last if last and last.kind == current.kind else None


def accept(paths: Paths, current: Profile, compared_with: Profile | None) -> None:
    """Remember a batch that passed everything."""
    artifacts.write_json(paths.accepted, to_plain(_Memory(current, compared_with)))
