"""Each raw file parsed once: a Parquet part named by the file's digest, by how it is read, and by its own digest.

A part that is there and whole is not made again; one that no file asks for is removed, so that the folder is a function
of the files and the parameters.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import pyarrow as pa

from dti_pipeline.artifacts import file_digest
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events.database import Room, parquet_files, run_script, script, write_parquet
from dti_pipeline.events.lines import LONGEST, SHOWN, TOO_LONG
from dti_pipeline.events.parquet import Rows
from dti_pipeline.events.sources import File, Log
from dti_pipeline.execution import tasks

LINES_VERSION = 3  # of lines.py and parquet.py; goes into the name of a part, as the text of the SQL does
ITEMS, USERS = "items", "users"  # folders of their parts
OWN = 16  # characters of a part's own digest that end its name
log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """Files that are parsed, by name of the file."""

    logs: dict[str, Path]
    items: dict[str, Path]
    users: dict[str, Path]


class StagedFile(NamedTuple):
    """A file of a log and the part that holds its rows; files of one content share a part."""

    number: int  # of the file among those of the log, by name
    name: str
    part: str


@dataclass(frozen=True)
class _Task:
    """A file to parse."""

    file: File
    kind: Literal["interactions", "items", "users"]
    scale: Mapping[str, float | None]
    folder: Path  # of its part
    more: bool
    room: Room


def stage(found: Log, folder: Path, config: Config) -> Parts:
    """Parse what is not parsed yet, each file a task.

    Interactions: ``line, raw, user_id, item_id, rating, timestamp, item_text, request_id, split, reason``; ``line`` is
    1-based in the file (a row's number in Parquet), ``raw`` the line's text and ``reason`` what is wrong with it, both
    null for a good row.
    Items: ``line, raw, item_id, item_text, reason`` likewise. Users: ``line, raw, user_id, reason``. Where the log was
    located with further columns all end with ``more``, the list of their values. Cost: one read of every file, and a
    parse of the new ones, out of core.
    Raises InputError for a file that cannot be read to its end.
    """
    more, room = bool(found.columns), Room.of_task(config)
    scale = {"lowest": found.lowest, "highest": found.highest}
    work = [
        *(_Task(file, "interactions", scale, folder, more, room) for file in found.logs if file.form),
        *(_Task(file, "items", {}, folder / ITEMS, more, room) for file in found.items if file.form),
        *(_Task(file, "users", {}, folder / USERS, more, room) for file in found.users if file.form),
    ]
    made = tasks.run(_part, work, config.execution, "files parsed")
    for path in folder.rglob("*"):
        if path.is_file() and path not in made:
            path.unlink()
    named: dict[str, dict[str, Path]] = {"interactions": {}, "items": {}, "users": {}}
    for task, part in zip(work, made, strict=True):
        named[task.kind][task.file.name] = part
    return Parts(*named.values())


def read_parts(connection: duckdb.DuckDBPyConnection, files: Sequence[StagedFile], first: int = 0) -> None:
    """Table ``files`` and views ``staged`` and ``good_rows`` of these files of a log, and view ``own_staged`` of those
    from number ``first`` on, which reads no other."""
    connection.execute("CREATE TEMP TABLE files (file INTEGER, source_file VARCHAR, part VARCHAR)")
    for file in files:
        connection.execute("INSERT INTO files VALUES (?, ?, ?)", file)
    for view, of in (("parts_read", files), ("own_parts_read", files[first:])):
        # Files that hold the same share a part. Files without a row have none.
        parts = sorted({Path(file.part) for file in of or files[:1]})
        nothing = "" if of else "WHERE false"
        connection.execute(f"CREATE TEMP VIEW {view} AS FROM {parquet_files(*parts, filename=True)} {nothing}")
    run_script(connection, "staged", first_file=first)


def _part(task: _Task) -> Path:
    """The part of a file."""
    form, more = task.file.form, task.more
    assert form is not None
    variables = {**form.variables, **task.scale, "genres": form.genres and list(form.genres)}
    variables |= {"clock": form.clock, "requests": form.requests, "splits": form.splits}
    recipe = [LINES_VERSION, form.view, variables, form.header, form.encoding, more, script("words"), script(task.kind)]
    recipe += [script(form.view)] if form.view != "parquet" else []
    mapping = hashlib.md5(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    name = f"{file_digest(task.file.path)[:16]}-{mapping[:8]}"
    for part in task.folder.glob(f"{name}-*.parquet"):
        if is_whole(part):
            return part
        log.warning("%s is damaged: %s is read again", part, task.file.path)
    task.folder.mkdir(parents=True, exist_ok=True)
    aside = task.folder / f".{name}.{os.getpid()}"
    with task.room.connect(task.folder.parent) as connection:
        try:
            _parse(connection, task, variables, aside)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    part = task.folder / f"{name}-{file_digest(aside)[:OWN]}.parquet"
    aside.replace(part)
    return part


def is_whole(part: Path) -> bool:
    """Whether a part's content is what was written. Cost: a read of it."""
    return part.stem.rpartition("-")[2] == file_digest(part)[:OWN]


def _parse(connection: duckdb.DuckDBPyConnection, task: _Task, variables: Mapping[str, Any], path: Path) -> None:
    form, file = task.file.form, task.file.path
    assert form is not None
    source = Rows(file, form.variables["columns"]) if form.view == "parquet" else form.lines(file)
    try:
        if isinstance(source, Rows):
            source.view(connection)
        else:
            connection.register("lines", source.stream())
            run_script(connection, form.view, **form.variables, longest=LONGEST, too_long=TOO_LONG, shown=SHOWN)
        run_script(connection, "words")
        run_script(connection, task.kind, **variables)
        write_parquet(connection, "FROM parsed" if task.more else "SELECT * EXCLUDE (more) FROM parsed", path)
    except duckdb.Error as error:
        if isinstance(source.error, InputError):
            raise source.error from error
        if isinstance(source, Rows) and isinstance(source.error, (pa.ArrowException, OSError)):
            raise InputError(f"{file} is not a whole Parquet file: {source.error}") from error
        if isinstance(source, Rows) and isinstance(error, duckdb.NotImplementedException):
            raise InputError(f"{file} has a column of a type that cannot be read: {error}") from error
        raise
