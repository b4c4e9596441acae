"""Each raw file parsed once: a Parquet part named by the file's digest, by how it is read, and by its own digest.

A part that is there and whole is not made again; one that no file asks for is removed, so that the folder is a function
of the files and the parameters.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa

from dti_pipeline.artifacts import file_digest
from dti_pipeline.errors import InputError
from dti_pipeline.events.database import run_script, script, write_parquet
from dti_pipeline.events.parquet import Rows
from dti_pipeline.events.sources import File, Log

LINES_VERSION = 2  # of lines.py and parquet.py; goes into the name of a part, as the text of the SQL does
ITEMS, USERS = "items", "users"  # folders of their parts
OWN = 16  # characters of a part's own digest that end its name
log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """Files that are parsed, by name of the file."""

    logs: dict[str, Path]
    items: dict[str, Path]
    users: dict[str, Path]


def stage(connection: duckdb.DuckDBPyConnection, log: Log, folder: Path) -> Parts:
    """Parse what is not parsed yet.

    Interactions: ``line, raw, user_id, item_id, rating, timestamp, item_text, request_id, split, reason``; ``line`` is
    1-based in the file (a row's number in Parquet), ``raw`` the line's text and ``reason`` what is wrong with it, both
    null for a good row.
    Items: ``line, raw, item_id, item_text, reason`` likewise. Users: ``line, raw, user_id, reason``. Where the log was
    located with further columns all end with ``more``, the list of their values. Cost: one read of every file, and a
    parse of the new ones, out of core.
    Raises InputError for a file that cannot be read to its end.
    """
    scale = {"lowest": log.lowest, "highest": log.highest}
    more = bool(log.columns)
    logs = {file.name: _part(connection, file, "interactions", scale, folder, more) for file in log.logs if file.form}
    items = {file.name: _part(connection, file, "items", {}, folder / ITEMS, more) for file in log.items if file.form}
    users = {file.name: _part(connection, file, "users", {}, folder / USERS, more) for file in log.users if file.form}
    for path in folder.rglob("*"):
        if path.is_file() and path not in {*logs.values(), *items.values(), *users.values()}:
            path.unlink()
    return Parts(logs, items, users)


def _part(
    connection: duckdb.DuckDBPyConnection,
    file: File,
    kind: str,
    scale: dict[str, float | None],
    folder: Path,
    more: bool,
) -> Path:
    form = file.form
    assert form is not None
    variables = {**form.variables, **scale, "genres": form.genres and list(form.genres)}
    variables |= {"clock": form.clock, "requests": form.requests, "splits": form.splits}
    recipe = [LINES_VERSION, form.view, variables, form.header, form.encoding, more, script("words"), script(kind)]
    recipe += [script(form.view)] if form.view != "parquet" else []
    mapping = hashlib.md5(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    name = f"{file_digest(file.path)[:16]}-{mapping[:8]}"
    for part in folder.glob(f"{name}-*.parquet"):
        if is_whole(part):
            return part
        log.warning("%s is damaged: %s is read again", part, file.path)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}.{os.getpid()}"
    source = Rows(file.path, form.variables["columns"]) if form.view == "parquet" else form.lines(file.path)
    try:
        if isinstance(source, Rows):
            source.view(connection)
        else:
            connection.register("lines", source.stream())
            run_script(connection, form.view, **form.variables)
        run_script(connection, "words")
        run_script(connection, kind, **variables)
        write_parquet(connection, "FROM parsed" if more else "SELECT * EXCLUDE (more) FROM parsed", aside)
    except duckdb.Error as error:
        aside.unlink(missing_ok=True)
        if isinstance(source.error, InputError):
            raise source.error from error
        if isinstance(source, Rows) and isinstance(source.error, (pa.ArrowException, OSError)):
            raise InputError(f"{file.path} is not a whole Parquet file: {source.error}") from error
        if isinstance(source, Rows) and isinstance(error, duckdb.NotImplementedException):
            raise InputError(f"{file.path} has a column of a type that cannot be read: {error}") from error
        raise
    part = folder / f"{name}-{file_digest(aside)[:OWN]}.parquet"
    aside.replace(part)
    return part


def is_whole(part: Path) -> bool:
    """Whether a part's content is what was written. Cost: a read of it."""
    return part.stem.rpartition("-")[2] == file_digest(part)[:OWN]
