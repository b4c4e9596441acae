"""The Parquet files of one batch as read-only SQL tables, out of core.

The suites ask questions in SQL and hand Great Expectations only the answers: counts, figures and a few offending rows.
So a log of any size is checked within ``events.memory_limit``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pandas

from dti_pipeline.errors import InputError

_DIGEST = 16  # characters of a raw file's digest that open the name of its part


class Tables:
    """Named views on one in-memory connection."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def view(self, name: str, query: str) -> None:
        """Name a query."""
        self._connection.execute(f"CREATE VIEW {name} AS {query}")

    def types(self, name: str) -> dict[str, str]:
        """Column names of a view, in order, with their SQL types."""
        return {row[0]: row[1] for row in self._connection.execute(f"DESCRIBE {name}").fetchall()}

    def count(self, query: str) -> int:
        """Rows that a query returns."""
        answer = self._connection.execute(f"SELECT count(*) FROM ({query})").fetchone()
        assert answer is not None
        return int(answer[0])

    def rows(self, query: str, limit: int) -> list[dict[str, Any]]:
        """The first ``limit`` rows by value, as plain dicts that JSON can hold."""
        cursor = self._connection.execute(f"SELECT * FROM ({query}) ORDER BY ALL LIMIT {limit}")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, map(_plain, row), strict=True)) for row in cursor.fetchall()]

    def frame(self, query: str) -> pandas.DataFrame:
        """A query's answer as a frame. Only for answers of a few rows."""
        return self._connection.execute(query).df()


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def open_tables(
    staged: Path, interactions: Path, source_files: Mapping[str, str], memory_limit: str
) -> Iterator[Tables]:
    """``staged`` over a folder of parts, ``parsed`` (the same and ``source_file``) and ``interactions``.

    ``source_files`` is name -> digest of the raw files; a part's name begins with the digest of the file it was parsed
    from. Raises InputError naming what cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="dti-validate-") as spill:
        settings = {"memory_limit": memory_limit, "temp_directory": spill, "autoinstall_known_extensions": False}
        with duckdb.connect(":memory:", config=settings) as connection:
            tables = Tables(connection)
            parts = f"read_parquet({_literal(staged / '*.parquet')}, filename = true)"
            try:
                tables.view("interactions", f"FROM read_parquet({_literal(interactions)})")
                tables.view("staged", f"SELECT * EXCLUDE (filename) FROM {parts}")
            except duckdb.Error as error:
                raise InputError(f"{interactions} or {staged} is not whole: run `dti ingest` again") from error
            names = {md5[:_DIGEST]: name for name, md5 in source_files.items()}
            files = f"map({_literals(names)}, {_literals(names.values())})"
            name = f"coalesce({files}[left(parse_filename(filename), {_DIGEST})], parse_filename(filename))"
            tables.view("parsed", f"SELECT {name} AS source_file, * EXCLUDE (filename) FROM {parts}")
            yield tables


def _literal(text: object) -> str:
    return "'" + str(text).replace("'", "''") + "'"


def _literals(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_literal, texts))}]::VARCHAR[]"
