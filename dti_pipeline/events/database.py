"""DuckDB, in memory for one call: no database file, so no lock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.execution import tasks

#: Of DuckDB in the memory of a task; the rest is Python's and Arrow's.
DUCKDB_SHARE = 0.75


class Room(NamedTuple):
    """What DuckDB may take in a process."""

    memory_limit: str
    key: str = "events.memory_limit"  # the params key that says so
    threads: int | None = None  # None: one for each processor

    @classmethod
    def of_task(cls, config: Config) -> Room:
        """Of a task: in this process as of all else, in one beside others one thread and a share of its memory."""
        if not tasks.several(config.execution):
            return cls(config.events.memory_limit)
        return cls(f"{config.execution.memory_gib * DUCKDB_SHARE * 1024:.0f}MiB", "execution.memory_gib", 1)

    def connect(self, scratch: Path) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return connect(self.memory_limit, scratch, self.key, self.threads)


@contextmanager
def connect(
    memory_limit: str, scratch: Path, key: str = "events.memory_limit", threads: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory database that spills into a folder under ``scratch``, removed afterwards.

    ``memory_limit`` is written as DuckDB writes it (``2GB``); anything else raises InputError, which names ``key``.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    with artifacts.aside(scratch / "duckdb") as spill, duckdb.connect() as connection:
        try:
            connection.execute(f"SET memory_limit = {literal(memory_limit)}")
        except duckdb.Error as error:
            raise InputError(f"params key `{key}` must be a size such as 2GB, not {memory_limit!r}") from error
        if threads is not None:
            connection.execute(f"SET threads = {threads}")
        connection.execute(f"SET temp_directory = {literal(spill)}")
        # On by itself in a process that looks interactive; off, and not to be set, in a notebook without ipywidgets.
        if connection.execute("SELECT current_setting('enable_progress_bar')").fetchone() == (True,):
            connection.execute("SET enable_progress_bar = false")
        connection.execute("SET autoinstall_known_extensions = false")  # nothing is downloaded
        connection.execute("SET TimeZone = 'UTC'")  # a time without a zone means the same on every machine
        try:
            yield connection
        except duckdb.OutOfMemoryException as error:
            raise InputError(
                f"params key `{key}` allows {memory_limit}, which is too little: {_said(error)}"
            ) from error
        except duckdb.IOException as error:  # a full disk, a file that went away
            raise InputError(f"the log could not be read or written: {_said(error)}") from error


def _said(error: duckdb.Error) -> str:
    """DuckDB's sentence, without its advice, or the JSON that it wraps around an error of another thread."""
    said = str(error).partition("\n")[0]
    _, begin, content = said.partition("{")
    try:
        return json.loads(begin + content)["exception_message"]
    except (ValueError, KeyError):
        return said


def run_script(connection: duckdb.DuckDBPyConnection, name: str, **variables: Any) -> None:
    """Run ``sql/<name>.sql``; the script reads ``variables`` with ``getvariable``."""
    for variable, value in variables.items():
        connection.execute(f"SET VARIABLE {variable} = $value", {"value": value})
    connection.execute(script(name))


def script(name: str) -> str:
    return resources.files("dti_pipeline.events").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


def scripts() -> dict[str, str]:
    """All scripts, by name."""
    folder = resources.files("dti_pipeline.events").joinpath("sql")
    names = sorted(file.name.removesuffix(".sql") for file in folder.iterdir() if file.name.endswith(".sql"))
    return {name: script(name) for name in names}


def write_parquet(connection: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Write an ordered query to a zstd Parquet file; the same rows give the same bytes, however many threads run."""
    connection.execute(f"COPY ({query}) TO {literal(path)} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880)")


def identifier(name: str) -> str:
    """A column's name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: object) -> str:
    """Text as SQL writes it."""
    return "'" + str(text).replace("'", "''") + "'"


def parquet_files(*paths: Path, filename: bool = False) -> str:
    """The Parquet files of these very paths, as SQL reads them; ``filename``: with the path of each row's besides.

    DuckDB takes ``*``, ``?`` and ``[`` in a path for a pattern, and ``key=value`` folders for columns that win over the
    file's own: neither is meant here.
    """
    exact = ", ".join(literal("".join(f"[{c}]" if c in "*?[" else c for c in str(path))) for path in paths)
    return f"read_parquet([{exact}], hive_partitioning = false, filename = {filename})"


def first_row(connection: duckdb.DuckDBPyConnection, query: str, *values: Any) -> dict[str, Any]:
    """The first row of an answer, by column."""
    cursor = connection.execute(query, values)
    found = cursor.fetchone()
    assert found is not None
    return dict(zip([column[0] for column in cursor.description], found, strict=True))
