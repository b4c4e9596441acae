"""Reports of checks in plain values: no validation library is needed to read, print or store them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dti_pipeline.plain import OPTIONAL


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
    load: str | None = field(
        default=None, metadata=OPTIONAL
    )  # that it is about; None: the log, or all before its loads

    @property
    def title(self) -> str:
        """What to call it where there are others."""
        return f"{self.suite}.{self.name}" if self.load is None else f"{self.suite}.{self.name} of {self.load}"


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
class CheckedLoad:
    """One load of a log that grows, and the load before it as drift is measured."""

    name: str | None  # None: the files before all loads
    key: str  # digest of all that was checked, and by which rules
    profile: Profile | None
    compared_with: Profile | None


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
    # In order, the files before all loads first; None: a log without loads. Counts and failures are of all of them, the
    # other fields of the files before.
    loads: tuple[CheckedLoad, ...] | None = field(default=None, metadata=OPTIONAL)

    def timing(self) -> Timing | None:
        """What stands before targets; None where there are no interactions."""
        if self.rows_in_requests is None or self.largest_request is None:
            return None
        return Timing(self.rows_in_requests, self.largest_request, self.younger_than, self.label_ages, self.warning)

    def of_copies(self) -> Copies | None:
        """Equal histories; None likewise."""
        return None if self.copied_users is None else Copies(self.copied_users, self.copies)

    def listing(self) -> str:
        """Failures with their rows, for a terminal; empty where nothing failed."""
        lines = []
        for outcome in self.failures:
            lines.append(f"{outcome.title}: {outcome.expected}; observed: {outcome.observed}")
            lines += ["  " + "  ".join(f"{key}={value}" for key, value in row.items()) for row in outcome.failing_rows]
            left = outcome.unexpected_count - len(outcome.failing_rows)
            if outcome.failing_rows and left > 0:
                lines.append(f"  ... and {left:,} more")
        return "\n".join(lines)


def report(
    outcomes: Sequence[Outcome], profile: Profile | None, compared_with: Profile | None, timing: Timing | None,
    copies: Copies | None = None, loads: Sequence[CheckedLoad] | None = None,
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
    found = ValidateReport(*counts, profile, compared_with, drift, *timed, *(vars(copies).values() if copies else ()))
    return replace(found, loads=None if loads is None else tuple(loads))
