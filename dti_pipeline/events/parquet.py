"""A Parquet file as a stream of numbered rows whose values are text, by the names that the file itself has.

DuckDB's own reader takes names without regard to case and ``key=value`` folders for columns, and prints in its own way
what is not text. Here pyarrow reads, and each type says how its values become text: identity is kept, or the value is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline.errors import InputError
from dti_pipeline.events.database import literal
from dti_pipeline.events.lines import LONGEST, SHOWN, TOO_LONG

BATCH = 1 << 16  # rows in memory at a time
VALUES = {"user_id", "item_id", "rating", "timestamp", "request_id", "split"}  # which no list or record can be
#: Whole numbers below it are exact in a float of so many bits: an id at or above it may be another's.
EXACT = {32: 1 << 24, 64: 1 << 53}


@dataclass
class Rows:
    """One file's rows. ``error`` holds what stopped the stream, for DuckDB reports it only as text."""

    path: Path
    columns: Sequence[str | None]  # for each value; None: the file has none
    error: BaseException | None = field(default=None, init=False)

    def view(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make view ``records`` (line, raw, problem, values) over the file, to be read once."""
        kinds = dict(zip(*_fields(self.path), strict=True))
        wanted = list(dict.fromkeys(name for name in self.columns if name is not None))
        schema = pa.schema([("line", pa.int64()), *((f"c{i}", _read_as(kinds[c])) for i, c in enumerate(wanted))])
        connection.register("rows_of_file", pa.RecordBatchReader.from_batches(schema, self._batches(wanted, schema)))
        of = {name: (f"c{i}", schema.field(f"c{i}").type) for i, name in enumerate(wanted)}
        texts = ", ".join("NULL" if name is None else text(*of[name]) for name in self.columns)
        broken = " OR ".join(f"({c} IS NOT NULL AND {text(c, t)} IS NULL)" for c, t in of.values() if _is_bytes(t))
        long = " OR ".join(f"strlen({text(c, t)}) > {LONGEST}" for c, t in of.values() if not pa.types.is_primitive(t))
        connection.execute(
            'CREATE OR REPLACE TEMP VIEW records AS SELECT line, left(to_json("values")::VARCHAR, CASE problem WHEN'
            f' {literal(TOO_LONG)} THEN {SHOWN} ELSE {LONGEST} END) AS raw, problem, "values"'
            f" FROM (SELECT line, CASE WHEN {broken or 'false'} THEN 'not UTF-8 text'"
            f" WHEN {long or 'false'} THEN {literal(TOO_LONG)} END AS problem,"
            f' [{texts}]::VARCHAR[] AS "values" FROM rows_of_file)'
        )

    def _batches(self, wanted: Sequence[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        line = 1
        try:
            with pq.ParquetFile(self.path) as file:
                # A path below a column is written with dots: only columns at the top are asked for.
                for batch in file.iter_batches(BATCH, columns=wanted):
                    arrays = [batch.column(name).cast(schema.field(f"c{i}").type) for i, name in enumerate(wanted)]
                    lines = pa.array(np.arange(line, line + len(batch)))
                    line += len(batch)
                    yield pa.record_batch([lines, *arrays], schema=schema)
        except BaseException as error:
            self.error = error
            raise


def names(path: Path) -> list[str]:
    """Names of a file's columns. Raises InputError where it is no Parquet file or has a name twice."""
    return _fields(path)[0]


def _fields(path: Path) -> tuple[list[str], list[pa.DataType]]:
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a Parquet file") from error
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise InputError(f"{path} has two columns {twice[0]!r}: which one is meant cannot be told")
    return schema.names, schema.types


def check(path: Path, chosen: Mapping[str, str]) -> None:
    """Raise InputError where the column that is chosen for a value holds lists or records."""
    kinds = dict(zip(*_fields(path), strict=True))
    for value, column in chosen.items():
        if value in VALUES and pa.types.is_nested(kinds[column]):
            asked = value.replace("_", " ")
            raise InputError(f"{path} column {column!r} holds {kinds[column]}, which cannot be read as {asked}")


def _read_as(kind: pa.DataType) -> pa.DataType:
    """The type that DuckDB reads a column in."""
    if pa.types.is_dictionary(kind):
        return _read_as(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and str(kind) != "extension<arrow.uuid>":
        return _read_as(kind.storage_type)
    if pa.types.is_float16(kind):
        return pa.float32()
    return pa.string() if pa.types.is_null(kind) else kind


def _is_bytes(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    )


def text(column: str, kind: pa.DataType) -> str:
    """The SQL that makes a column's values text. Bytes are UTF-8 text, and null where they are not; a number of a float
    that may stand for several is written with an exponent, which ids are refused for."""
    if _is_bytes(kind):
        return f"TRY(decode({column}))"
    if pa.types.is_floating(kind):
        exact = EXACT[kind.bit_width]
        return (
            f"CASE WHEN NOT isfinite({column}) THEN NULL WHEN abs({column}) < {exact} THEN CAST({column} AS VARCHAR)"
            f" ELSE format('{{:.16e}}', {column}::DOUBLE) END"
        )
    return f"CAST({column} AS VARCHAR)"
