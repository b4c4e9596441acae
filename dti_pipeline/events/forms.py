"""File forms: the columns or keys that turn one file into rows of wanted values, whatever log it belongs to.

Each form has a view in ``sql/`` that yields (line, raw, problem, values); from there on all logs are read alike.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dti_pipeline.errors import InputError
from dti_pipeline.events import parquet
from dti_pipeline.events.lines import Lines, encoding_of, head, record_pattern

#: The values of an interaction, of an item and of a user, in the order the SQL reads them.
INTERACTION = ("user_id", "item_id", "rating", "timestamp", "item_text", "request_id", "split")
ITEM = ("item_id", "title", "genres")
USER = ("user_id",)
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
    requests: bool = False  # ... ids of requests
    splits: bool = False  # ... a split of its own
    header: int = 0  # lines before the first row
    encoding: str = "utf-8"
    genres: tuple[str, ...] | None = None  # names of flag columns; None: genres are text
    columns: tuple[str, ...] = ()  # names of all that the file has; none: they have no names
    rating: str | None = None  # that of them which decides the label

    def with_columns(self, names: Sequence[str]) -> Form:
        """The form that also has columns of these names, behind its values; nothing for one that the file lacks."""
        if self.genres is not None:  # its last values are flags, however many
            return self
        there = [name if name in self.columns else None for name in names]
        key, more = "columns", list[Any](there)
        if self.view == "separated":
            key, more = "places", [self.columns.index(name) + 1 if name else 0 for name in there]
        elif self.view == "json":
            key, more = "pointers", [_pointer(name or ABSENT) for name in there]
        return replace(self, variables={**self.variables, key: [*self.variables[key], *more]})

    def lines(self, path: Path) -> Lines:
        """The file's lines as this form has them."""
        quoted = self.view == "separated" and self.variables["quoted"]
        record = record_pattern(self.variables["separator"], self.variables["width"]) if quoted else None
        return Lines(path, self.header, self.encoding, record)


def separated(separator: str, width: int, places: Sequence[int], quoted: bool = False, **form: Any) -> Form:
    """Lines of ``width`` fields; ``places`` are the wanted values' fields, from 1, or 0 for one that is not there."""
    mark = re.escape(separator)
    value = f'"(?:[^"]|"")*"|[^"{mark}][^{mark}]*|'
    variables = {
        "separator": separator,
        "width": width,
        "places": list(places),
        "quoted": quoted,
        "field": f"({value}){mark}",
        "record": f"(?:(?:{value}){mark})*",
    }
    return Form("separated", variables, **form)


def named(path: Path, names: Names, wanted: Sequence[str], keys: Mapping[str, str]) -> Form | None:
    """The form of a CSV, TSV, JSONL or Parquet file whose columns have names; None for an empty file.

    ``keys`` are the params keys that named the columns, for the InputError that a missing column raises.
    """
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        columns = parquet.names(path)
        chosen = _choose(path, columns, names, keys)
        parquet.check(path, chosen)
        return _told(Form("parquet", {"columns": [chosen.get(name) for name in wanted]}), chosen, columns)
    is_json = suffix in (".jsonl", ".json", ".ndjson")
    lines = head(path, PROBED if is_json else 1)
    if not lines:
        return None
    if is_json:
        columns = _json_keys(lines)
        # Where no line is an object there are no keys to choose from: every line goes to the quarantine.
        chosen = _choose(path, columns or [options[0] for options in names.values()], names, keys)
        pointers = [_pointer(chosen.get(name, ABSENT)) for name in wanted]
        plain = [place for place, name in enumerate(wanted, 1) if name in parquet.VALUES]
        return _told(Form("json", {"pointers": pointers, "plain": plain}), chosen, columns)
    separator = max(",\t;|", key=lines[0].count)
    columns = _csv_columns(path, lines[0], separator)
    chosen = _choose(path, columns, names, keys)
    places = [columns.index(chosen[name]) + 1 if name in chosen else 0 for name in wanted]
    encoding = "utf-8" if wanted == INTERACTION else encoding_of(path)
    return _told(separated(separator, len(columns), places, quoted=True, header=1, encoding=encoding), chosen, columns)


def _told(form: Form, chosen: Mapping[str, str], columns: Sequence[str]) -> Form:
    """The form, which says what the file has of that which a log may have or not."""
    return replace(
        form,
        clock="timestamp" in chosen,
        requests="request_id" in chosen,
        splits="split" in chosen,
        columns=tuple(columns),
        rating=chosen.get("rating"),
    )


def _pointer(key: str) -> str:
    return "/" + key.replace("~", "~0").replace("/", "~1")


def _csv_columns(path: Path, header: str, separator: str) -> list[str]:
    try:
        columns = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
    except csv.Error as error:
        raise InputError(f"{path} line 1 is not a header: {error}") from error
    return columns


def _json_keys(lines: list[str]) -> list[str]:
    keys: dict[str, None] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            keys.update(dict.fromkeys(record))
    return list(keys)


def _choose(path: Path, columns: Sequence[str], names: Names, keys: Mapping[str, str]) -> dict[str, str]:
    chosen = {}
    for value, options in names.items():
        present = [name for name in options if name in columns]
        if not present:
            key = f"params key `{keys[value]}` names" if value in keys else "this reader needs"
            raise InputError(f"{key} the column {options[0]!r}, which {path} does not have: it has {listed(columns)}")
        if columns.count(present[0]) > 1:
            raise InputError(f"{path} has two columns {present[0]!r}: which one is meant cannot be told")
        chosen[value] = present[0]
    return chosen


def listed(columns: Sequence[str]) -> str:
    """Names for a message, cut: a file of another kind may have anything in their place."""
    shown = ["".join(c if c.isprintable() else "?" for c in name[:40]) for name in columns[:20]]
    return ", ".join(shown + ["..."] * (len(columns) > 20)) or "none"
