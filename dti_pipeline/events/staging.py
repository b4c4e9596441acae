"""Each raw file parsed once: a Parquet part named by the file's digest and by how it is read.

A part that is there is not made again; one that no file asks for is removed, so that the folder is a function of the
files and the parameters.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb

from dti_pipeline.artifacts import file_digest
from dti_pipeline.errors import InputError
from dti_pipeline.events.database import identifier, literal, run_script, script, write_parquet
from dti_pipeline.events.sources import File, Log

LINES_VERSION = 1  # of lines.py; goes into the name of a part, as the text of the SQL does
BROKEN_PARQUET = (duckdb.IOException, duckdb.InvalidInputException, duckdb.SerializationException)
ITEMS, USERS = "items", "users"  # folders of their parts


class Parts(NamedTuple):
    """Files that are parsed."""

    logs: dict[str, Path]  # by name of the file
    items: list[Path]
    users: list[Path]


def stage(connection: duckdb.DuckDBPyConnection, log: Log, folder: Path) -> Parts:
    """Parse what is not parsed yet.

    Interactions: ``line, raw, user_id, item_id, rating, timestamp, item_text, request_id, split, reason``; ``line`` is
    1-based in the file (a row's number in Parquet), ``raw`` the line's text and ``reason`` what is wrong with it, both
    null for a good row.
    Items: ``line, item_id, item_text``. Users: ``line, user_id``. Where the log was located with further columns all
    end with ``more``, the list of their values. Cost: one read of every file, and a parse of the new ones, out of core.
    Raises InputError for a file that cannot be read to its end.
    """
    scale = {"lowest": log.lowest, "highest": log.highest}
    more = bool(log.columns)
    logs = {file.name: _part(connection, file, "interactions", scale, folder, more) for file in log.logs if file.form}
    items = [_part(connection, file, "items", {}, folder / ITEMS, more) for file in log.items if file.form]
    users = [_part(connection, file, "users", {}, folder / USERS, more) for file in log.users if file.form]
    for path in folder.rglob("*"):
        if path.is_file() and path not in {*logs.values(), *items, *users}:
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
    recipe = [LINES_VERSION, form.view, variables, form.header, form.encoding, more, script(kind)]
    recipe += [script(form.view)] if form.view != "parquet" else []
    mapping = hashlib.md5(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    part = folder / f"{file_digest(file.path)[:16]}-{mapping[:8]}.parquet"
    if part.is_file():
        return part
    folder.mkdir(parents=True, exist_ok=True)
    aside = part.with_name(f".{part.name}.{os.getpid()}")
    lines = None if form.view == "parquet" else form.lines(file.path)
    try:
        if lines is None:
            _view_parquet(connection, file.path, form.variables["columns"])
        else:
            connection.register("lines", lines.stream())
            run_script(connection, form.view, **form.variables)
        run_script(connection, kind, **variables)
        write_parquet(connection, "FROM parsed" if more else "SELECT * EXCLUDE (more) FROM parsed", aside)
    except duckdb.Error as error:
        aside.unlink(missing_ok=True)
        if lines is None and isinstance(error, BROKEN_PARQUET):
            raise InputError(f"{file.path} is not a whole Parquet file") from error
        if lines is not None and isinstance(lines.error, InputError):
            raise lines.error from error
        raise
    aside.replace(part)
    return part


def _view_parquet(connection: duckdb.DuckDBPyConnection, path: Path, columns: Sequence[str | None]) -> None:
    """View ``records`` over a Parquet file: names of columns cannot be variables of a script."""
    casts = ", ".join(f"CAST({identifier(name)} AS VARCHAR)" if name else "NULL" for name in columns)
    connection.execute(
        'CREATE OR REPLACE TEMP VIEW records AS SELECT line, to_json("values") AS raw, NULL AS problem, "values"'
        f' FROM (SELECT file_row_number + 1 AS line, [{casts}]::VARCHAR[] AS "values"'
        f" FROM read_parquet({literal(path)}, file_row_number = true))"
    )
