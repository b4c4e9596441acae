"""Reports of checks in plain values: no validation library is needed to read, print or store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The outcome of one expectation."""

    suite: str  # raw, canonical, splits, batch, drift
    name: str  # short and stable, unique in its suite: the name of the check in an orchestrator
    expectation: str  # type, as Great Expectations writes it
    column: str | None  # None: the expectation is about the table
    success: bool
    expected: str  # in plain words
    observed: str  # in plain words
    unexpected_count: int  # offending rows in all; 0 for an expectation about a figure
    failing_rows: tuple[dict[str, Any], ...]  # some of them, with what is needed to find them; () on success


@dataclass(frozen=True)
class SuiteCounts:
    """One suite's expectations."""

    expectations: int
    failed: int


@dataclass(frozen=True)
class BatchKind:
    """Reading and labelling of a log: only batches of one kind are comparable."""

    source: str
    label_threshold: float


@dataclass(frozen=True)
class Profile:
    """Figures of a batch that drift is measured by."""

    batch: str  # digest of the interactions
    kind: BatchKind
    rows: int
    users: int
    label_rate: float


@dataclass(frozen=True)
class Timing:
    """What stands before targets; the fields of the same names in the report."""

    rows_in_requests: int
    largest_request: int
    younger_than: dict[str, float] | None
    label_ages: str
    warning: str | None

    def sentences(self) -> list[str]:
        """For a page."""
        requests = (
            f"Rows in requests of more than one: {self.rows_in_requests:,}; the largest has {self.largest_request:,}"
        )
        return [f"{one}." for one in (requests, f"Ages of labels: {self.label_ages}", self.warning) if one]


@dataclass(frozen=True)
class Copies:
    """Equal histories; the fields of the report."""

    copied_users: int
    copies: str | None  # a warning


@dataclass(frozen=True)
class ValidateReport:
    """Counts for each suite, and every failure in full."""

    success: bool
    expectations: int
    failed: int
    suites: dict[str, SuiteCounts]
    failures: tuple[Outcome, ...]
    profile: Profile | None  # None: the columns are not those of interactions
    compared_with: Profile | None  # the accepted batch before; None: the first of its kind
    drift: str  # in words, what it was measured against
    rows_in_requests: int | None  # rows in requests of more than one; None as for the profile
    largest_request: int | None  # rows
    # Of the labels of the last packing.context rows before a target, the shares that are younger than a second, a
    # minute and so on when it is asked for; None: no clock, or no profile.
    younger_than: dict[str, float] | None
    label_ages: str  # in words
    warning: str | None  # where labels are younger than a server's
    copied_users: int | None = None  # with the whole history of another user, item by item; None as for the profile
    copies: str | None = None  # a warning, where there are such users

    def listing(self) -> str:
        """Failures with their rows, for a terminal; empty where nothing failed."""
        lines = []
        for outcome in self.failures:
            lines.append(f"{outcome.suite}.{outcome.name}: {outcome.expected}; observed: {outcome.observed}")
            lines += ["  " + "  ".join(f"{key}={value}" for key, value in row.items()) for row in outcome.failing_rows]
            left = outcome.unexpected_count - len(outcome.failing_rows)
            if outcome.failing_rows and left > 0:
                lines.append(f"  ... and {left:,} more")
        return "\n".join(lines)


def report(
    outcomes: Sequence[Outcome], profile: Profile | None, compared_with: Profile | None, timing: Timing | None,
    copies: Copies | None = None,
) -> ValidateReport:  # fmt: skip
    """Count the outcomes of each suite, and keep the failures."""
    failures = tuple(outcome for outcome in outcomes if not outcome.success)
    suites = {
        suite: SuiteCounts(*(sum(outcome.suite == suite for outcome in found) for found in (outcomes, failures)))
        for suite in dict.fromkeys(outcome.suite for outcome in outcomes)
    }
    drift = "nothing to compare with: no batch of this kind was accepted before"
    if compared_with is not None:
        drift = f"against the accepted batch {compared_with.batch[:8]} of {compared_with.rows:,} rows"
    counts = not failures, len(outcomes), len(failures), suites, failures
    timed = (
        (None, None, None, "not known: there are no interactions", None) if timing is None else vars(timing).values()
    )
    return ValidateReport(*counts, profile, compared_with, drift, *timed, *(vars(copies).values() if copies else ()))
