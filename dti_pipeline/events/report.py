"""Reports of what brings and reads a log: counts of rows, users and items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dti_pipeline.plain import OPTIONAL


@dataclass(frozen=True)
class RawLog:
    """A log that is read where it lies."""

    source: str  # events.source
    path: str  # as in params.yaml
    files: int
    bytes: int


@dataclass(frozen=True)
class FetchedFile:
    """One downloaded file."""

    url: str
    md5: str
    bytes: int


@dataclass(frozen=True)
class FetchReport:
    """A public log in ``data/raw``."""

    name: str
    path: str
    source: str  # events.source that reads it
    terms: str  # of its owner
    fetched: bool  # False: it was there
    files: dict[str, FetchedFile]  # by name


@dataclass(frozen=True)
class SynthReport:
    """A synthetic log and what was planted in it."""

    rows: int  # kept + quarantined + duplicates
    kept: int
    quarantined: int
    duplicates: int
    reasons: dict[str, int]  # planted bad rows by the reason of their quarantine
    users: int
    items: int
    label_rate: float  # share of likes
    test_targets: int  # of the default split
    best_possible_auc: float | None  # of the true probabilities on those, moods known; None: of one class


@dataclass(frozen=True)
class SplitCounts:
    """One split of the interactions."""

    rows: int
    targets: int  # rows with at least split.min_history ones before their request
    label_rate: float | None  # None: no row


@dataclass(frozen=True)
class FileCounts:
    """One raw file."""

    read: int
    quarantined: int


@dataclass(frozen=True)
class CatalogueCounts:
    """The ledger of the files of items, or of users: read = kept + quarantined + repeated."""

    read: int = 0
    kept: int = 0  # items that have a title by them, or users
    quarantined: int = 0
    repeated: int = 0  # rows of an item or a user that has an earlier one; the first one counts
    files: dict[str, FileCounts] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)  # quarantined rows by reason


@dataclass(frozen=True)
class OtherFiles:
    """Files below the log's folder that were not read: their names say that they are none of the log."""

    count: int = 0
    first: tuple[str, ...] = ()  # names of some


@dataclass(frozen=True)
class IngestReport:
    """The ledger of a log, read = kept + quarantined + duplicates, and facts of the rows kept."""

    read: int
    kept: int
    quarantined: int
    duplicates: int
    rows_left_out: int  # of users beyond events.max_users; not read
    users_left_out: int
    users: int
    items: int
    label_rate: float
    untitled: int  # kept rows of items without a title
    untitled_items: int
    first_time: int | None  # unix seconds; None: a log without a clock
    last_time: int | None
    whole_seconds: bool  # no time has a fraction of a second
    splits: dict[str, SplitCounts]
    files: dict[str, FileCounts]
    reasons: dict[str, int]  # quarantined rows by reason
    catalogue: CatalogueCounts
    other_files: OtherFiles
    clock: bool  # the log has timestamps
    rating_scale: tuple[float | None, float | None]  # ends; None: open
    user_table: CatalogueCounts | None = field(default=None, metadata=OPTIONAL)  # None: no file of users was read

    def left_out(self) -> list[str]:
        """What was not taken as it is, a line each; none where all was."""
        others = self.other_files
        lines = []
        if self.quarantined:
            lines.append(f"{self.quarantined:,} rows quarantined: {_counts(self.reasons)}")
        for rows, of, one in (
            ("catalogue rows", self.catalogue, "an item"),
            ("rows of users", self.user_table, "a user"),
        ):
            if of is not None and (of.quarantined or of.repeated):
                reasons = f": {_counts(of.reasons)}" if of.reasons else ""
                lines.append(
                    f"of {of.read:,} {rows} {of.repeated:,} repeat {one}, {of.quarantined:,} quarantined{reasons}"
                )
        if others.count:
            more = ", ..." if others.count > len(others.first) else ""
            lines.append(f"{others.count:,} files not read: {', '.join(others.first)}{more}")
        return lines


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
