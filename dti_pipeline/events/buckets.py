"""A log worked on in buckets of users, each a task for any process of any machine that reaches the project's home.

The hash of a user's id is its slot, and a bucket is a run of slots, cut so that buckets have about the same number of
rows; a history is never parted. What is of the whole log (the order of users, titles, when validation and test begin)
is made once, and all buckets read it: with the merge by user and position the outcome is the same for any number.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import duckdb
import numpy as np
from numpy.typing import NDArray

from dti_pipeline.config import Config
from dti_pipeline.events.database import Room, literal, parquet_files, run_script, write_parquet
from dti_pipeline.events.histories import Rules, make_history, make_interactions
from dti_pipeline.events.settings import SLOTS
from dti_pipeline.events.staging import StagedFile, read_parts
from dti_pipeline.execution import tasks
from dti_pipeline.paths import Paths

log = logging.getLogger(__name__)
T = TypeVar("T")

#: What is of the whole log, for every bucket to read.
COMMON = ("users", "titles", "of_users", "of_items", "cuts")
BUCKET_OF = "getvariable('bucket_of_slot')[1 + slot(user_id)]"


class Pieces(Protocol):
    """The two steps from rows to interactions, with what is of the whole log between them."""

    def histories(self) -> None:
        """Make ``history`` of ``good_rows`` and ``users``."""

    def interactions(self) -> None:
        """Make ``interactions`` and ``labelled`` of ``history`` and what is of the whole log."""


@dataclass(frozen=True)
class _Whole:
    connection: duckdb.DuckDBPyConnection
    rules: Rules

    def histories(self) -> None:
        make_history(self.connection, self.rules)

    def interactions(self) -> None:
        make_interactions(self.connection, self.rules)


@dataclass(frozen=True)
class _Place:
    """Where the files of all buckets are, and what a task may take."""

    folder: Path
    room: Room

    def connect(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return self.room.connect(self.folder)

    def write(self, connection: duckdb.DuckDBPyConnection, query: str, name: str) -> None:
        """Write a file whole or not at all: a task may be run twice."""
        path = self.folder / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        write_parquet(connection, query, aside)
        aside.replace(path)

    def view(self, connection: duckdb.DuckDBPyConnection, name: str, *files: Path, only: str = "") -> None:
        connection.execute(f"CREATE TEMP VIEW {name} AS FROM {parquet_files(*files)} {only}")


@dataclass(frozen=True)
class _Share:
    """Some files of the log, whose rows go to the files of their buckets."""

    place: _Place
    number: int
    files: tuple[StagedFile, ...]
    bucket_of_slot: tuple[int, ...]


@dataclass(frozen=True)
class _Bucket:
    """Some users, by the number that is in the names of their files."""

    place: _Place
    number: int
    rules: Rules

    def file(self, made: str) -> Path:
        return self.place.folder / made / f"{self.number}.parquet"

    @contextmanager
    def opened(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Its users and rows, and as much of the whole log as there is yet."""
        folder, view = self.place.folder, self.place.view
        with self.place.connect() as connection:
            view(connection, "good_rows", *sorted((folder / "rows").glob(f"*/bucket={self.number}/*.parquet")))
            for name in COMMON:
                if (path := folder / f"{name}.parquet").exists():
                    view(connection, name, path, only=f"WHERE bucket = {self.number}" if name == "users" else "")
            yield connection


def _scatter(share: _Share) -> None:
    rows = share.place.folder / "rows"
    rows.mkdir(exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=share.place.folder))  # not below rows: what a dead task left there would be read
    with share.place.connect() as connection:
        read_parts(connection, share.files)
        run_script(connection, "slot", bucket_of_slot=list(share.bucket_of_slot))
        connection.execute(
            f"COPY (SELECT *, {BUCKET_OF} AS bucket FROM good_rows) TO {literal(aside)}"
            " (FORMAT parquet, COMPRESSION zstd, PARTITION_BY (bucket), OVERWRITE_OR_IGNORE)"
        )
    if not (rows / str(share.number)).exists():
        aside.rename(rows / str(share.number))


def _history(bucket: _Bucket) -> None:
    with bucket.opened() as connection:
        make_history(connection, bucket.rules)
        bucket.place.write(connection, "FROM history", f"history/{bucket.number}")


def _interactions(bucket: _Bucket) -> None:
    with bucket.opened() as connection:
        bucket.place.view(connection, "history", bucket.file("history"))
        make_interactions(connection, bucket.rules)
        bucket.place.write(connection, "FROM interactions", f"interactions/{bucket.number}")


class _Buckets:
    """Pieces that are tasks. What the tasks make is, in the end, in the driver's views ``history`` and
    ``interactions``."""

    def __init__(self, driver: duckdb.DuckDBPyConnection, config: Config, rules: Rules, folder: Path) -> None:
        self.driver, self.execution, self.rules = driver, config.execution, rules
        self.place = _Place(folder, Room.of_task(config))
        run_script(driver, "slot")
        rows_of = dict(driver.execute('SELECT slot(user_id), sum("rows")::BIGINT FROM users GROUP BY 1').fetchall())
        rows = np.array([rows_of.get(slot, 0) for slot in range(SLOTS)])
        self.bucket_of_slot = cut(rows, config.events.buckets)
        self.buckets = [
            _Bucket(self.place, number, rules) for number in np.unique(self.bucket_of_slot[rows > 0]).tolist()
        ]
        _say_who_is_heavy(driver, config.events.buckets)

    def histories(self) -> None:
        slots = tuple(self.bucket_of_slot.tolist())
        self.driver.execute("SET VARIABLE bucket_of_slot = $1", [list(slots)])
        self.place.write(self.driver, f"SELECT *, {BUCKET_OF} AS bucket FROM users ORDER BY bucket", "users")
        files = [StagedFile(*row) for row in self.driver.execute("FROM files ORDER BY file").fetchall()]
        shares = [tuple(files[first :: len(self.buckets)]) for first in range(min(len(files), len(self.buckets)))]
        self._run(_scatter, [_Share(self.place, i, share, slots) for i, share in enumerate(shares)], "rows to buckets")
        self._run(_history, self.buckets, "histories of buckets")
        self._gather("history", "history")

    def interactions(self) -> None:
        there = {name for (name,) in self.driver.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        for name in COMMON[1:]:
            if name in there:
                self.place.write(self.driver, f"FROM {name}", name)
        self._run(_interactions, self.buckets, "interactions of buckets")
        self._gather("made", "interactions")
        # A table knows which columns have no value missing, and Parquet says so: the bytes are those of one piece.
        self.driver.execute("CREATE TEMP TABLE interactions AS FROM made")
        self.driver.execute("CREATE TEMP VIEW labelled AS FROM interactions")

    def _run(self, function: Callable[[T], None], work: Sequence[T], what: str) -> None:
        tasks.run(function, work, self.execution, what)

    def _gather(self, view: str, made: str) -> None:
        self.place.view(self.driver, view, *(bucket.file(made) for bucket in self.buckets))


def cut(rows: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """The bucket of each slot, ascending, from the rows in it: each bucket has about the same share of all rows."""
    before = np.cumsum(rows) - rows
    return before * buckets // max(int(rows.sum()), 1)


def _say_who_is_heavy(driver: duckdb.DuckDBPyConnection, buckets: int) -> None:
    """Warn of a user with more rows than two buckets should have."""
    found = driver.execute(
        """SELECT user_id, "rows", (SELECT sum("rows") FROM users)::BIGINT AS total FROM users
           WHERE "rows" * $1 > 2 * total ORDER BY "rows" DESC LIMIT 1""",
        [buckets],
    ).fetchone()
    if found:
        log.warning(
            "user %r has %s of the log's %s rows, and a history is not parted: its bucket takes longer than others",
            found[0],
            *(f"{number:,}" for number in found[1:]),
        )


@contextmanager
def pieces(driver: duckdb.DuckDBPyConnection, config: Config, paths: Paths, rules: Rules) -> Iterator[Pieces]:
    """The log of a connection in one piece, or in ``events.buckets`` of them, which leave nothing behind; a load is one
    piece, since its users are few."""
    somebody = driver.execute("FROM users LIMIT 1").fetchone()
    if config.events.buckets == 1 or rules.first_file or not somebody:
        yield _Whole(driver, rules)
        return
    # Where it cannot be removed, on a file system that is full or shared, that must not hide what went wrong.
    with tempfile.TemporaryDirectory(
        prefix=".buckets.", dir=paths.events.parent, ignore_cleanup_errors=True
    ) as scratch:
        yield _Buckets(driver, config, rules, Path(scratch))
