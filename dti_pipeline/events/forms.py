"""File forms: the columns or keys that turn one file into rows of wanted values, whatever log it belongs to.

Each form has a view of its own in ``sql/`` that yields (line, raw, problem, values); after it, all logs are read alike.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline.errors import InputError
from dti_pipeline.events.lines import Lines, encoding_of, head, record_pattern

#: The values of an interaction and of an item, in the order the SQL reads them.
INTERACTION = ("user_id", "item_id", "rating", "timestamp", "item_text")
ITEM = ("item_id", "title", "genres")
ABSENT = "(no such key)"  # of a JSON object, for a value that the log does not have
PROBED = 1000  # records of a JSONL file that are looked at to learn its keys

#: For each wanted value, the names it may have in the file, best first. A value left out is not there.
Names = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Form:
    """One file's form. ``variables`` go to the view; they and ``view`` say all that shapes its rows."""

    view: Literal["separated", "json", "parquet"]
    variables: Mapping[str, Any]
    clock: bool = False  # the file has timestamps
    header: int = 0  # lines before the first row
    encoding: str = "utf-8"
    genres: tuple[str, ...] | None = field(default=None)  # names of flag columns; None: genres are text

    def lines(self, path: Path) -> Lines:
        """The file's lines as this form has them."""
        separated = self.view == "separated" and self.variables["quoted"]
        record = record_pattern(self.variables["separator"], self.variables["width"]) if separated else None
        return Lines(path, self.header, self.encoding, record)


def separated(separator: str, width: int, places: Mapping[str, int], wanted: Sequence[str], **form: Any) -> Form:
    """Fields without quotes or header: ``places`` are 1-based."""
    return _separated(separator, width, [places.get(name, 0) for name in wanted], "timestamp" in places, False, **form)


def named(path: Path, names: Names, wanted: Sequence[str], keys: Mapping[str, str]) -> Form | None:
    """The form of a CSV, TSV, JSONL or Parquet file whose columns have names; None for an empty file.

    ``keys`` are the params keys that named the columns, for the InputError that a missing column raises.
    """
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        return _parquet(path, names, wanted, keys)
    is_json = suffix in (".jsonl", ".json", ".ndjson")
    lines = head(path, PROBED if is_json else 1)
    if not lines:
        return None
    return _json(path, lines, names, wanted, keys) if is_json else _csv(path, lines[0], names, wanted, keys)


def _csv(path: Path, header: str, names: Names, wanted: Sequence[str], keys: Mapping[str, str]) -> Form:
    separator = max(",\t;|", key=header.count)
    try:
        columns = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
    except csv.Error as error:
        raise InputError(f"{path} line 1 is not a header: {error}") from error
    chosen = _choose(path, columns, names, keys)
    places = [columns.index(chosen[name]) + 1 if name in chosen else 0 for name in wanted]
    encoding = encoding_of(path) if wanted == ITEM else "utf-8"
    return _separated(separator, len(columns), places, "timestamp" in chosen, True, header=1, encoding=encoding)


def _separated(separator: str, width: int, places: list[int], clock: bool, quoted: bool, **form: Any) -> Form:
    mark = re.escape(separator)
    value = f'"(?:[^"]|"")*"|[^"{mark}][^{mark}]*|'
    variables = {
        "separator": separator,
        "width": width,
        "places": places,
        "quoted": quoted,
        "field": f"({value}){mark}",
        "record": f"(?:(?:{value}){mark})*",
    }
    return Form("separated", variables, clock, **form)


def _json(path: Path, lines: list[str], names: Names, wanted: Sequence[str], keys: Mapping[str, str]) -> Form:
    columns: dict[str, None] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            columns.update(dict.fromkeys(record))
    # Where no line is an object there are no keys to choose from: every line goes to the quarantine.
    first = {name: options[0] for name, options in names.items()}
    chosen = _choose(path, list(columns), names, keys) if columns else first
    keys_read = [chosen.get(name, ABSENT) for name in wanted]
    pointers = ["/" + key.replace("~", "~0").replace("/", "~1") for key in keys_read]
    return Form("json", {"pointers": pointers}, "timestamp" in chosen)


def _parquet(path: Path, names: Names, wanted: Sequence[str], keys: Mapping[str, str]) -> Form:
    try:
        columns = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not a Parquet file") from error
    chosen = _choose(path, columns, names, keys)
    return Form("parquet", {"columns": [chosen.get(name) for name in wanted]}, "timestamp" in chosen)


def _choose(path: Path, columns: Sequence[str], names: Names, keys: Mapping[str, str]) -> dict[str, str]:
    chosen = {}
    for value, options in names.items():
        present = [name for name in options if name in columns]
        if not present:
            key = f"params key `{keys[value]}` names" if value in keys else "this reader needs"
            raise InputError(f"{key} the column {options[0]!r}, which {path} does not have: it has {_listed(columns)}")
        chosen[value] = present[0]
    return chosen


def _listed(columns: Sequence[str]) -> str:
    """Names for a message: not all of a wide table's, and what a file of some other kind has in their place is cut."""
    shown = ["".join(c if c.isprintable() else "?" for c in name[:40]) for name in columns[:20]]
    return ", ".join(shown + ["..."] * (len(columns) > 20)) or "none"
