"""Reports of what brings and reads a log: counts of rows, users and items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dti_pipeline.plain import OPTIONAL, part_of


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
class LogCounts:
    """The ledger of a log or of a load, read = kept + quarantined + duplicates, and facts of the rows kept."""

    read: int
    kept: int
    quarantined: int
    duplicates: int
    rows_left_out: int  # of users beyond events.max_users; not read
    users_left_out: int
    users: int  # of a load: those that no earlier file has
    items: int  # likewise
    label_rate: float | None  # None: no row was kept
    untitled: int  # kept rows of items without a title
    untitled_items: int
    first_time: int | None  # unix seconds; None: a log without a clock, or no row
    last_time: int | None
    whole_seconds: bool  # no time has a fraction of a second
    splits: dict[str, SplitCounts]
    files: dict[str, FileCounts]
    reasons: dict[str, int]  # quarantined rows by reason


@dataclass(frozen=True)
class LoadReport(LogCounts):
    """What one load added to the log."""

    name: str | None  # its folder or file below events.path; None: the files before all loads
    key: str  # digest of all that it was made of: equal keys are equal files
    late: int  # rows kept that are earlier than a row of their user in an earlier load
    cuts: tuple[float | None, float | None] | None  # when validation and test begin; None: not by one clock


@dataclass(frozen=True)
class IngestReport(LogCounts):
    """Of a whole log, all its loads together."""

    catalogue: CatalogueCounts
    other_files: OtherFiles
    clock: bool  # the log has timestamps
    rating_scale: tuple[float | None, float | None]  # ends; None: open
    user_table: CatalogueCounts | None = field(default=None, metadata=OPTIONAL)  # None: no file of users was read
    # In order, the files before all loads first; None: events.loads_from is not set.
    loads: tuple[LoadReport, ...] | None = field(default=None, metadata=OPTIONAL)

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
        if late := sum(load.late for load in self.loads or ()):
            lines.append(
                f"{late:,} rows came late, in a load behind later rows of their user, which do not know of them"
            )
        return lines


def together(parts: Sequence[LogCounts]) -> LogCounts:
    """The counts of loads as those of one log."""
    if len(parts) == 1:
        return LogCounts(**part_of(parts[0], LogCounts))
    kept = sum(part.kept for part in parts)
    times = [time for part in parts for time in (part.first_time, part.last_time) if time is not None]
    numbers = ("read", "quarantined", "duplicates", "rows_left_out", "users_left_out", "users", "items", "untitled")
    return LogCounts(
        **{name: sum(getattr(part, name) for part in parts) for name in (*numbers, "untitled_items")},
        kept=kept,
        label_rate=_mean([(part.kept, part.label_rate) for part in parts]),
        first_time=min(times, default=None),
        last_time=max(times, default=None),
        whole_seconds=all(part.whole_seconds for part in parts),
        splits={
            name: SplitCounts(
                sum(part.splits[name].rows for part in parts),
                sum(part.splits[name].targets for part in parts),
                _mean([(part.splits[name].rows, part.splits[name].label_rate) for part in parts]),
            )
            for name in parts[0].splits
        },
        files={name: counts for part in parts for name, counts in part.files.items()},
        reasons=dict(sorted(sum((Counter(part.reasons) for part in parts), Counter()).items())),
    )


def _mean(parts: Sequence[tuple[int, float | None]]) -> float | None:
    """The mean over rows of parts with so many rows and such a mean each; None without rows."""
    known = [(rows, mean) for rows, mean in parts if rows and mean is not None]
    return sum(rows * mean for rows, mean in known) / sum(rows for rows, _ in known) if known else None


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
