"""Which column of a table is what: by its name, and by what stands in it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from dti_pipeline.errors import InputError
from dti_pipeline.events import parquet
from dti_pipeline.events.forms import listed
from dti_pipeline.events.lines import head

#: Records of a file's beginning that are looked at.
LOOKED_AT = 2000
#: Names that a column has where it is what it is called, best first, without case and marks.
NAMES: Mapping[str, tuple[str, ...]] = {
    "user_id": (
        "userid", "user", "uid", "memberid", "member", "customerid", "customer", "visitorid", "visitor", "reviewerid",
        "accountid", "account", "profileid", "deviceid", "person", "personid", "viewerid", "listenerid", "readerid",
    ),
    "item_id": (
        "itemid", "item", "iid", "movieid", "movie", "productid", "product", "sku", "parentasin", "asin", "articleid",
        "article", "videoid", "video", "songid", "trackid", "bookid", "isbn", "adid", "creativeid", "newsid", "docid",
        "contentid", "listingid", "storyid", "postid", "id",
    ),
    "rating": (
        "click", "clicked", "isclick", "isclicked", "label", "clicks", "liked", "like", "rating", "ratings", "stars",
        "star", "overall", "score", "feedback", "target", "y", "response",
    ),
    "timestamp": (
        "timestamp", "time", "ts", "at", "unixtime", "unixreviewtime", "eventtime", "eventtimestamp", "datetime",
        "createdat", "date", "clickedat", "ratedat", "shownat", "when", "timems",
    ),
    "request_id": ("requestid", "request", "impressionid", "impression", "reqid", "queryid", "searchid", "slateid"),
    "split": ("split", "publishedsplit", "fold", "subset", "partition", "set"),
    "item_text": ("itemtext", "title", "itemtitle", "name", "itemname", "headline", "text", "description"),
}  # fmt: skip
REQUIRED = ("user_id", "item_id", "rating")
SPLITS = {"train", "validation", "valid", "val", "dev", "test"}


@dataclass(frozen=True)
class Table:
    """The beginning of a file, every value as text; None: there is none."""

    path: Path
    columns: tuple[str, ...]
    values: Mapping[str, Sequence[str | None]]

    def of(self, column: str) -> list[str]:
        """The values that are there."""
        return [value for value in self.values[column] if value]


@dataclass
class Roles:
    """The column of each role that a log has, and in a sentence why."""

    columns: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


def sample(path: Path, count: int = LOOKED_AT) -> Table:
    """The first records of a CSV, TSV, JSONL or Parquet file. Raises InputError for another, or one without names."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix == ".parquet":
        names = parquet.names(path)
        with pq.ParquetFile(path) as file:
            batch = next(file.iter_batches(count), None)
        found = {name: [] if batch is None else list(map(_text, batch.column(name).to_pylist())) for name in names}
        return Table(path, tuple(names), found)
    lines = head(path, count + 1)
    if not lines:
        raise InputError(f"{path} is empty")
    if suffix in (".jsonl", ".ndjson", ".json"):
        records = [record for line in lines if isinstance(record := _json(line), dict)]
        names = list(dict.fromkeys(key for record in records for key in record))
        if not names:
            raise InputError(f"{path} has no JSON object in its first lines: one a line is needed")
        return Table(path, tuple(names), {name: [_text(record.get(name)) for record in records] for name in names})
    separator = max(",\t;|", key=lines[0].count)
    names, *rows = islice(csv.reader(lines, delimiter=separator), count + 1)
    names = [name.strip() for name in names]
    if all(re.fullmatch(r"-?[\d.:\- T]*", name) for name in names):
        raise InputError(f"{path} line 1 has no names of columns: put one before it, such as user_id,item_id,rating")
    whole = [row for row in rows if len(row) == len(names)]
    return Table(path, tuple(names), {name: [row[i] for row in whole] for i, name in enumerate(names)})


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def roles(table: Table, named: Mapping[str, str] | None = None) -> Roles:
    """What each column of a log is. ``named``: columns that a person has named, by role.

    Raises InputError where a person named a column that is not there, and where users, items or labels cannot be told:
    it says what to choose from.
    """
    found = Roles()
    for role, column in (named or {}).items():
        if role not in NAMES:
            raise InputError(f"--column {role}={column} names no role: use one of {', '.join(NAMES)}")
        if column not in table.columns:
            raise InputError(f"--column {role}={column}: {table.path} has no such column, but {listed(table.columns)}")
        found.columns[role], found.why[role] = column, "as you said"
    for role in ("split", "request_id", "timestamp", "user_id", "item_id", "rating", "item_text"):
        if role in found.columns:
            continue
        fits = [
            name for name in _by_name(table, role) if name not in found.columns.values() and _fits(table, role, name)
        ]
        if fits:
            found.columns[role] = fits[0]
            others = f"; it could be {listed(fits[1:])}: --column {role}=NAME" if fits[1:] else ""
            found.why[role] = f"by its name{_and_content(table, role, fits[0])}{others}"
    _by_content(table, found)
    for role in REQUIRED:
        if role not in found.columns:
            left = [name for name in table.columns if name not in found.columns.values() and _fits(table, role, name)]
            asked = {"user_id": "users", "item_id": "items", "rating": "clicks, labels or ratings"}[role]
            choose = f"one of {listed(left)}" if left else f"none of {listed(table.columns)} looks like it"
            raise InputError(f"{table.path}: which column holds {asked}? {choose}; name it with --column {role}=NAME")
    return found


def _by_name(table: Table, role: str) -> list[str]:
    plain = {name: re.sub(r"[^a-z0-9]", "", name.lower()) for name in table.columns}
    named = [name for name in table.columns if plain[name] in NAMES[role]]
    return sorted(named, key=lambda name: NAMES[role].index(plain[name]))


def _by_content(table: Table, found: Roles) -> None:
    """The one column left that can be a role which no name told."""
    for role, looks in (("timestamp", "the only column of times"), ("rating", "the only column of few numbers")):
        if role in found.columns:
            continue
        left = [name for name in table.columns if name not in found.columns.values() and _fits(table, role, name)]
        if role == "rating":
            left = [name for name in left if len(set(table.of(name))) <= 20]
        if len(left) == 1:
            found.columns[role], found.why[role] = left[0], looks


def _and_content(table: Table, role: str, column: str) -> str:
    if role == "timestamp":
        return f" and values ({clock(table.of(column))})"
    if role == "rating" and len(distinct := sorted(set(map(float, table.of(column))))) <= 11:
        return f" and values ({', '.join(f'{value:g}' for value in distinct)})"
    return ""


def _fits(table: Table, role: str, column: str) -> bool:
    """Whether nearly all values of a column can be what the role asks."""
    values = table.of(column)
    if not values:
        return False
    fits: Callable[[str], bool] = {
        "rating": lambda text: _number(text) is not None,
        "timestamp": lambda text: clock([text]) is not None,
        "split": lambda text: text.strip().lower() in SPLITS,
        "item_text": lambda text: any(map(str.isalpha, text)),
    }.get(role, lambda text: True)
    if role == "rating" and len(set(values)) < 2 and len(values) > 100:
        return False
    return sum(map(fits, values)) >= 0.95 * len(values)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


#: Powers of a second that a whole number of today's size counts, by the number of its digits.
_UNITS = (
    (1e8, 1e11, "unix seconds"),
    (1e11, 1e14, "milliseconds"),
    (1e14, 1e17, "microseconds"),
    (1e17, 1e20, "nanoseconds"),
)


def clock(values: Sequence[str]) -> str | None:
    """The unit of times, as ``dti ingest`` reads them; None where the first of them is no time since 1973."""
    for text in values[:1]:
        number = _number(text)
        if number is not None:
            return next((unit for low, high, unit in _UNITS if low <= number < high), None)
        try:
            datetime.fromisoformat(text.strip())
        except ValueError:
            return None
        return "ISO 8601, UTC where it names no zone"
    return None


def items_beside(folder: Sequence[Path], ids: Sequence[str]) -> tuple[Path, str, str] | None:
    """The table with the items' texts: its file, its column of ids and its column of texts; None where there is none.

    ``ids``: some items of the log. Most of a table's ids may be others, but half of the log's must be there.
    """
    for path in folder:
        try:
            table = sample(path, 50_000)
        except InputError:
            continue
        keys, texts = _by_name(table, "item_id"), _by_name(table, "item_text")
        texts = [name for name in texts if _fits(table, "item_text", name)]
        users = [name for name in _by_name(table, "user_id") if name not in keys]
        if not keys or not texts or users:
            continue
        known = set(table.of(keys[0]))
        if sum(one in known for one in ids) >= 0.5 * len(ids):
            return path, keys[0], texts[0]
    return None
