"""Sections of params.yaml about the log: the synthetic one, where any log is and how it is read, its splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from dti_pipeline.address import Address, is_address, parse
from dti_pipeline.plain import (
    MANNER,
    OPTIONAL,
    Finite,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Range,
    require,
)

#: Slots that the hash of a user's id may fall in; a bucket is a run of them.
SLOTS = 4096


@dataclass(frozen=True)
class SynthConfig:
    """The demo's log: planted tastes, planted defects, a known best possible AUC."""

    seed: NonNegativeInt = 7  # of the generator
    users: PositiveInt = 400  # people in the log
    items: Annotated[int, Range(1, 100_000)] = 600  # items to rate; there are no more titles than the upper bound
    interactions_per_user: PositiveInt = 80  # mean; single users vary around it
    defects: NonNegativeInt = 25  # bad rows planted in the log, every kind in turn
    rows_per_request: PositiveInt = 1  # rows shown together, at one time; the last request of a user may have fewer
    # Mean; the requests of a sitting are seconds to two minutes apart, the sittings days.
    requests_per_sitting: PositiveInt = 1
    mood: Annotated[float, Range(0, 10)] = 0.0  # logit that each sitting's good or bad mood adds or takes


@dataclass(frozen=True)
class ColumnsConfig:
    """Names of the columns of a CSV, Parquet or JSONL table (`events.source: table`)."""

    user_id: str = "user_id"  # column of the users
    item_id: str = "item_id"  # column of the items
    rating: str = "rating"  # a number; compared with split.label_threshold
    timestamp: str | None = "timestamp"  # Unix seconds (or milli-, microseconds), or ISO 8601; null: order but no clock
    item_text: str | None = None  # null: titles come from events.items_path, else the item id is the text
    # The request that a row was shown in: its rows, one user's, know nothing of each other. null: see `split.ties`.
    request_id: str | None = None
    # The log's own split, which `split.rule: column` reads: train; validation, valid, val or dev; test.
    split: str | None = None


@dataclass(frozen=True)
class EventsConfig:
    """Where the log is and how it is read."""

    source: Literal["synthetic", "movielens", "movietweetings", "amazon", "table"] = "synthetic"  # format of the log
    # A file or a folder; relative paths start at the project's home. Or in an S3-compatible store: s3://bucket/key, an
    # object or all below it, copied to data/raw/.remote when it is read.
    path: str = "data/raw/synthetic"
    items_path: str | None = None  # table, amazon: titles in a file of their own, when not found beside the log
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)  # table only
    item_columns: tuple[str, str] = ("item_id", "item_text")  # table only: id and text columns of items_path
    # table only: columns of the users in a file of their own, a row for each user, whose column of ids is named as the
    # log's (events.columns.user_id); `tokens.user_template` names those that it wants.
    users_path: str | None = field(default=None, metadata=OPTIONAL)
    # Rows equal in user, item, rating, time, request and split. drop: the first one stays, the others are counted as
    # duplicates. keep: each is an interaction. null: dropped where the log has a clock, since an event has its own
    # moment; kept where it has only an order, in which a song played twice is there twice.
    duplicates: Literal["drop", "keep"] | None = None
    max_users: PositiveInt | None = None  # keep whole histories of this many users, by hash of their id; null: all
    # Ratings below it are quarantined. null: the source's scale (movielens 0.5 to 5, movietweetings 0 to 10, amazon and
    # synthetic 1 to 5, table unbounded).
    min_rating: Finite | None = None
    max_rating: Finite | None = None  # ratings above it are quarantined; null: as for min_rating
    memory_limit: str = "2GB"  # of DuckDB, in its notation; beyond it, DuckDB spills to disk
    # Parts that the log is worked on in, whole users each, by hash of their id, with about the same number of rows:
    # tasks for the processes that `execution` names. The outputs are the same bytes for any number.
    buckets: Annotated[int, Range(1, SLOTS)] = field(default=1, metadata=MANNER)
    # A log that grows: the name below `path` of the first folder or file that came later, such as dt=2026-11-02. It and
    # each one behind it by name is a load: what was made of those before it stays as it is. null: one log.
    loads_from: str | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        for name in self.addresses():
            require(self.source != "synthetic", f"events.{name}", "a path for `events.source: synthetic`", "an address")
        ordered = self.min_rating is None or self.max_rating is None or self.min_rating < self.max_rating
        require(ordered, "events.min_rating", "below events.max_rating", self.min_rating)
        only = {f"columns.{name}": getattr(self.columns, name) for name in ("request_id", "split")}
        for name, value in {**only, "users_path": self.users_path}.items():
            rule = f"null for `events.source: {self.source}`, since only a table names its columns"
            require(self.source == "table" or value is None, f"events.{name}", rule, value)
        if self.loads_from is not None:
            rule = "null where `events.loads_from` names a load, since who is among them changes with the log"
            require(self.max_users is None, "events.max_users", rule, self.max_users)

    def addresses(self) -> dict[str, Address]:
        """What lies in an S3-compatible store, by name of the key."""
        paths = {name: getattr(self, name) for name in ("path", "items_path", "users_path")}
        return {
            name: parse(path, f"params key `events.{name}`")
            for name, path in paths.items()
            if path and is_address(path)
        }

    def keeps_duplicates(self, clock: bool) -> bool:
        """Whether equal rows are an interaction each, in a log that has a clock or none."""
        return not clock if self.duplicates is None else self.duplicates == "keep"


@dataclass(frozen=True)
class SplitConfig:
    """Which interactions train, validate and test, and which of them count as clicks."""

    # global_time: the earliest 80 % of eligible rows train, the next 10 % validate, the last 10 % test, by one clock
    # for all users. user_order: the same shares within each user's history, for logs with an order but no clock.
    # column: as the log's own column says, `events.columns.split`. No rule parts a request.
    rule: Literal["global_time", "user_order", "column"] = "global_time"
    # 0: no validation rows, and everything before the test rows trains. That is the last fit of a recipe that was
    # chosen with validation rows; its floors are fitted on the same rows.
    validation_share: Annotated[float, Range(0, 0.5, "[)")] = 0.1
    test_share: Annotated[float, Range(0, 0.5, "()")] = 0.1  # of the eligible rows
    label_threshold: Finite = 3.0  # label = 1 where rating > threshold
    # A target has at least this many rows of its user before its request; other rows are context only.
    min_history: NonNegativeInt = 5
    # Seconds after which a row's label is known to later rows, as a server would know it; null: at once. Needs a clock.
    feedback_delay: NonNegativeFloat | None = None
    # test_start: no label of a test row is ever known to another row; null: each is, after the delay.
    feedback_until: Literal["test_start"] | None = None
    # shown: all rows before its request stand in a target's context, those whose label is not known yet without it.
    # known: only those up to the last known label.
    context: Literal["shown", "known"] = "shown"
    # Rows of a user with one time stamp. together: they are one request, or as many as they have request ids, and know
    # nothing of each other, not even by the file's order. ordered: those that no id joins come in the file's order,
    # each after the one before it, whose label it knows where there is no delay.
    ties: Literal["together", "ordered"] = "together"
