"""What a check says, in plain values: no validation library is needed to read, print or store it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError

OUTCOMES = "outcomes.json"


@dataclass(frozen=True)
class Outcome:
    """The judgement of one expectation."""

    suite: str  # raw, canonical, splits, batch, drift
    name: str  # short and stable, unique in its suite: what an orchestrator calls the check
    expectation: str  # type, as Great Expectations writes it
    column: str | None  # None: the expectation is about the table
    success: bool
    expected: str  # in plain words
    observed: str  # in plain words
    unexpected_count: int  # offending rows in all; 0 for an expectation about a figure
    failing_rows: list[dict[str, Any]]  # some of them, with what is needed to find them; [] on success


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The stage's report: counts for each suite, and every failure in full."""
    failures = [outcome for outcome in outcomes if not outcome.success]
    suites = {
        suite: {
            "expectations": sum(outcome.suite == suite for outcome in outcomes),
            "failed": sum(outcome.suite == suite for outcome in failures),
        }
        for suite in dict.fromkeys(outcome.suite for outcome in outcomes)
    }
    return {
        "success": not failures,
        "expectations": len(outcomes),
        "failed": len(failures),
        "suites": suites,
        "failures": [asdict(outcome) for outcome in failures],
    }


def write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    """Write ``outcomes.json`` into a folder of checks."""
    artifacts.write_json(folder / OUTCOMES, [asdict(outcome) for outcome in outcomes])


def read(folder: Path) -> list[Outcome]:
    """The outcomes in a folder of checks. Raises InputError where there are none."""
    path = folder / OUTCOMES
    if not path.is_file():
        raise InputError(f"{path} does not exist: run `dti validate` first")
    return [Outcome(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def listing(outcomes: Sequence[Outcome]) -> str:
    """Failures with their rows, for a terminal; empty where nothing failed."""
    lines = []
    for outcome in outcomes:
        if outcome.success:
            continue
        lines.append(f"{outcome.suite}.{outcome.name}: {outcome.expected}; observed: {outcome.observed}")
        lines += ["  " + "  ".join(f"{key}={value}" for key, value in row.items()) for row in outcome.failing_rows]
        left = outcome.unexpected_count - len(outcome.failing_rows)
        if outcome.failing_rows and left > 0:
            lines.append(f"  ... and {left:,} more")
    return "\n".join(lines)
