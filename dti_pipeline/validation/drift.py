"""Memory of the batch that last passed: what the next one is measured against."""

from __future__ import annotations

import json
from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.validation.tables import Tables

Profile = dict[str, Any]


def profile(config: Config, tables: Tables, batch: str) -> Profile:
    """Figures of a batch, named by its digest. A log read or labelled differently has another ``kind``."""
    figures = tables.rows(
        "SELECT count(*) AS rows, count(DISTINCT user_id) AS users, coalesce(avg(label), 0) AS label_rate"
        " FROM interactions",
        limit=1,
    )[0]
    kind = {"source": config.events.source, "label_threshold": config.split.label_threshold}
    return {"batch": batch, "kind": kind, **figures}


def previous(paths: Paths, current: Profile) -> Profile | None:
    """What to compare with, or None: the batch accepted before this one, if it was of the same kind.

    The accepted batch itself, validated again, meets what it met the first time, so that its outcomes are the same.
    Raises InputError for a file that cannot be read.
    """
    if not paths.accepted.is_file():
        return None
    try:
        memory = json.loads(paths.accepted.read_text(encoding="utf-8"))
        last: Profile | None = memory["accepted"]
        if memory["accepted"]["batch"] == current["batch"]:
            last = memory["compared_with"]
        return last if last and last["kind"] == current["kind"] else None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{paths.accepted} is not a profile of an accepted batch: remove it to start afresh"
        ) from error


def accept(paths: Paths, current: Profile, compared_with: Profile | None) -> None:
    """Remember a batch that passed everything."""
    artifacts.write_json(paths.accepted, {"accepted": current, "compared_with": compared_with})
