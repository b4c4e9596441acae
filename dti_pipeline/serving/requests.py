"""Requests to a model: users' histories and candidate items, parsed from JSONL, Parquet, CSV or plain values.

One request a line (JSONL) or a row (Parquet; CSV, whose history, candidates and user are JSON)::

    {"user_id": "7",
     "history": [{"item_id": "12", "label": 1}, {"item_text": "Silent comet orbit night", "label": 0}],
     "candidates": [{"item_id": "3"}, {"item_text": "Great dragon spell river"}]}

``history`` is oldest first; ``label`` is what the user did, null where that is not known yet. An item is named by
``item_id``, ``item_text`` or both. ``user_id`` is optional and returned with the answer. ``timestamp``, in Unix
seconds, says when an entry of the history was shown, all or none, and of the request when it is asked (default: after
all of them); a model that has learned from late labels needs them, and so does one whose words tell gaps: those of an
entry are since the row before it, though that may be too old to stand in the prompt. ``request_id`` says which request
an entry was shown in, all or none, and which one this is: entries of one know nothing of each other, at whatever times
they were shown; without it entries of one time are one request. An item may give the columns that
a model's template names, ``{"item_id": "3", "genres": "Drama"}``: those of the item itself are known by its id.
``user`` has the columns that a model's ``tokens.user_template`` names, ``{"age": "25"}``; "" is one without a value.
``state``, from the answer to this user's last request, says that ``history`` has only what happened since; a service
that keeps states of users gives it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline.errors import InputError

#: Of a request.
KEYS = ("user_id", "user", "timestamp", "request_id", "state", "history", "candidates")
#: Of an item, and of an entry of a history.
ITEM_KEYS = frozenset(("item_id", "item_text", "label", "timestamp", "request_id"))
#: In the year 5138: a time beyond it is in milliseconds or finer.
LAST_SECOND = 1e11
_WHOLE = re.compile(r"^(-?\d{1,15})\.0+$", re.ASCII)
#: Rows of a Parquet file in memory at a time.
PARQUET_ROWS = 1024
#: Bytes of a line of JSON, characters of a cell of CSV.
LONGEST = 1 << 26


#: Values by name, as text; None: one that is no text.
Words = tuple[tuple[str, str | None], ...]


class Item(NamedTuple):
    """An item by id, text or both."""

    item_id: str | None
    item_text: str | None
    more: Words = ()  # its other values


@dataclass(frozen=True)
class Request:
    """One user and the items to score."""

    user_id: str | int | None
    history: tuple[Item, ...]  # oldest first
    labels: tuple[int | None, ...]  # 0 or 1, of each item of the history; None: not known yet
    candidates: tuple[Item, ...]
    times: tuple[float, ...] = ()  # seconds, ascending, of each item of the history, or of none
    time: float | None = None  # when it is asked; None: after all of them
    user: Words = ()  # columns of the user
    ids: tuple[str, ...] = ()  # of the request that each item of the history was shown in, or of none
    request_id: str | None = None  # this one's
    state: str | None = None  # of the user, that the history goes on from
    where: str = "a request"  # file and line that it came from


def parse(raw: Any, where: str) -> Request:
    """A request from plain values. ``where`` (a file and line) opens the InputError that names the first wrong key."""
    if not isinstance(raw, Mapping):
        raise InputError(f"{where} must be an object with keys history and candidates, not {_shown(raw)}")
    for key in raw:
        if key not in KEYS:
            raise InputError(f"{where} key {key} is not known: a request has {', '.join(KEYS[:-1])} and {KEYS[-1]}")
    user_id = raw.get("user_id")
    if isinstance(user_id, bool) or not isinstance(user_id, (str, int, type(None))):
        raise InputError(f"{where} key user_id must be text or a whole number, not {_shown(user_id)}")
    if isinstance(user_id, str):
        _encodable(user_id, f"{where} key user_id")
    state = raw.get("state")
    if not isinstance(state, (str, type(None))) or (state is not None and user_id is None):
        raise InputError(f"{where} key state must be what an answer to this user_id had, not {_shown(state)}")
    history, candidates = _entries(raw, "history", where), _entries(raw, "candidates", where)
    # Each entry is an object before it is asked for its time.
    items = tuple([_item(entry, place) for place, entry in history])
    ids = _ids(history)
    times = _times(history, ids)
    time = None if raw.get("timestamp") is None else _seconds(raw["timestamp"], f"{where} key timestamp")
    last = [*first_times(ids, times).values()][-1:] if ids and times else times[-1:]
    if time is not None and last and time < last[0]:
        raise InputError(f"{where} key timestamp is {time:g}, before the last of its history, {last[0]:g}")
    return Request(
        user_id=user_id,
        history=items,
        labels=tuple([_label(entry, place) for place, entry in history]),
        candidates=tuple([_item(entry, place) for place, entry in candidates]),
        times=times,
        time=time,
        user=_user(raw.get("user"), where),
        ids=ids,
        request_id=_request_id(raw.get("request_id"), f"{where} key request_id"),
        state=state,
        where=where,
    )


def first_times(ids: Sequence[str], times: Sequence[float]) -> dict[str, float]:
    """The earliest time of each request, in the order in which they first appear."""
    found: dict[str, float] = {}
    for one, time in zip(ids, times, strict=True):
        found[one] = min(time, found.get(one, time))
    return found


def _ids(history: list[tuple[str, Any]]) -> tuple[str, ...]:
    """Which request each entry was shown in; empty where none says so."""
    if all(entry.get("request_id") is None for _, entry in history):
        return ()
    ids = [_request_id(entry.get("request_id"), f"{place}.request_id") for place, entry in history]
    there = [one for one in ids if one is not None]
    if there and len(there) < len(ids):
        place = history[ids.index(None)][0]
        raise InputError(f"{place}.request_id is missing, though other entries of the history have one")
    return tuple(there)


def _request_id(value: Any, where: str) -> str | None:
    if value is None or (isinstance(value, float) and value != value):  # pandas has NaN for a null
        return None
    if isinstance(value, bool) or not isinstance(value, (str, Integral)) or not str(value).strip():
        raise InputError(f"{where} must be text or a whole number, not {_shown(value)}")
    _encodable(str(value), where)
    return _identity(str(value).strip())


def _times(history: list[tuple[str, Any]], ids: tuple[str, ...]) -> tuple[float, ...]:
    """When each entry was shown; empty where none says so. They ascend, those of requests where these begin."""
    if all(entry.get("timestamp") is None for _, entry in history):
        return ()
    times: list[float] = []
    for place, entry in history:
        value = entry.get("timestamp")
        if value is None:
            raise InputError(f"{place}.timestamp is missing, though other entries of the history have one")
        times.append(_seconds(value, f"{place}.timestamp"))
        if not ids and len(times) > 1 and times[-1] < times[-2]:
            raise InputError(f"{place}.timestamp is {times[-1]:g}, before that of the entry before it, {times[-2]:g}")
    begins = first_times(ids, times) if ids else {}
    for (one, before), (other, after) in pairwise(begins.items()):
        if after < before:
            raise InputError(
                f"{history[ids.index(other)][0]}.request_id is {other!r}, which begins at {after:g}, before the request"
                f" in front of it, {one!r} at {before:g}"
            )
    return tuple(times)


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{where} must be a number of seconds, not {_shown(value)}")
    try:
        seconds = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        seconds = LAST_SECOND * 2
    if not isfinite(seconds):
        raise InputError(f"{where} must be a number of seconds, not {_shown(value)}")
    if abs(seconds) > LAST_SECOND:
        raise InputError(f"{where} must be in seconds since 1970, not {_shown(value)}: is it in milliseconds?")
    return seconds


def _user(columns: Any, where: str) -> Words:
    if not isinstance(columns, (Mapping, type(None))):
        raise InputError(f"{where} key user must be an object with columns of the user, not {_shown(columns)}")
    return _words(columns or {}, columns or ())


def _words(values: Mapping[str, Any], names: Iterable[str]) -> Words:
    """The values of these names, without nulls."""
    return tuple((name, _word(values[name])) for name in sorted(names) if values[name] is not None)


def _entries(raw: Mapping[str, Any], key: str, where: str) -> list[tuple[str, Any]]:
    """The entries of a list, each behind the words that an error about it begins with."""
    value = raw.get(key)
    if value is None:
        raise InputError(f"{where} key {key} is missing")
    if hasattr(value, "tolist"):  # an array, as pandas holds a list read from Parquet
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where} key {key} must be a list, not {_shown(value)}")
    return [(f"{where} key {key}[{i}]", entry) for i, entry in enumerate(value)]


def _item(entry: Any, where: str) -> Item:
    if not isinstance(entry, (dict, Mapping)):
        raise InputError(f"{where} must be an object with item_id or item_text, not {_shown(entry)}")
    item_id, text = entry.get("item_id"), entry.get("item_text")
    others = entry.keys() - ITEM_KEYS
    more = _words(entry, others) if others else ()
    for key, value in (("item_id", item_id), ("item_text", text), *more):
        if type(value) is str and not value.isascii():
            _encodable(value, f"{where}.{key}")
    if type(item_id) is str and (text is None or type(text) is str):  # the usual case, without slow checks
        return Item(_identity(item_id), text, more)
    if isinstance(item_id, bool) or not isinstance(item_id, (str, Integral, type(None))):
        raise InputError(f"{where}.item_id must be text or a whole number, not {_shown(item_id)}")
    if not isinstance(text, (str, type(None))):
        raise InputError(f"{where}.item_text must be text, not {_shown(text)}")
    if item_id is None and not (text or "").strip():
        raise InputError(f"{where} names no item: it has neither item_id nor item_text")
    return Item(None if item_id is None else _identity(str(item_id)), text, more)


def _identity(item_id: str) -> str:
    """The id as a log has it: one that was written as a number with a point is the whole number."""
    return _WHOLE.sub(r"\1", item_id) if ".0" in item_id else item_id


def _encodable(text: str, where: str) -> None:
    """Raise InputError for text with half a character: JSON can say one, and no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{where} is not Unicode text: it has half a character, {_shown(text)}") from None


def _word(value: Any) -> str | None:
    """A value as a log's table has it; None for one of several parts."""
    if not isinstance(value, (str, bool, Real)):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return " ".join(re.split(r"[\t\n\f\r ]+", text)).strip()


def _label(entry: Mapping[str, Any], where: str) -> int | None:
    if "label" not in entry:
        raise InputError(f"{where}.label is missing: it says what the user did, 0 or 1, or null while that is unknown")
    label = entry["label"]
    if label is None or label != label:  # pandas has NaN for a null
        return None
    if not isinstance(label, Real) or label not in (0, 1):
        raise InputError(f"{where}.label must be 0 or 1, not {_shown(label)}")
    return int(label == 1)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Raw(NamedTuple):
    """A line or row of a file, not yet parsed."""

    value: Any
    where: str  # file and line
    form: Callable[[Any, str], Request]

    def parse(self) -> Request:
        return self.form(self.value, self.where)


def read(path: Path) -> Iterator[Request]:
    """The requests of a file, lazily; see :func:`raw`."""
    return (one.parse() for one in raw(path))


def raw(path: Path) -> Iterator[Raw]:
    """The lines or rows of a file, lazily: Parquet and CSV by its ending, else JSONL; ``-`` is standard input.
    InputError names the file, the line (of Parquet and CSV: the row) and the key."""
    if str(path) == "-":
        yield from _lines(sys.stdin.buffer, "standard input")
        return
    try:
        with path.open("rb") as handle:
            yield from {".parquet": _rows, ".csv": _cells}.get(path.suffix, _lines)(handle, str(path))
    except (pa.ArrowException, UnicodeDecodeError) as error:  # whatever Parquet's values are turned into
        raise InputError(f"{path} is not a whole Parquet file") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def lines(handle: IO[bytes]) -> Iterator[bytes]:
    """Lines; of one that is longer than :data:`LONGEST` so much that it can be told."""
    while line := handle.readline(LONGEST + 1):
        rest = line
        while len(rest) >= LONGEST and not rest.endswith(b"\n"):
            rest = handle.readline(LONGEST)
        yield line


def _lines(handle: IO[bytes], name: str) -> Iterator[Raw]:
    for number, line in enumerate(lines(handle), 1):
        if line.strip():
            yield Raw(line, f"{name} line {number}", parse_line)


def _cells(handle: IO[bytes], name: str) -> Iterator[Raw]:
    with io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = csv.reader(text, strict=True)
        csv.field_size_limit(LONGEST)
        try:
            names = next(rows, [])
            _require(names, name)
            for number, row in enumerate(rows, 1):
                if row:
                    yield Raw((names, row), f"{name} row {number}", parse_cells)
        except csv.Error as error:
            raise InputError(f"{name} line {rows.line_num} is not CSV: {error}") from None


def parse_cells(row: tuple[list[str], list[str]], where: str) -> Request:
    """A request from a row of CSV: its columns' names and its cells. An empty cell is a missing value."""
    names, cells = row
    if len(cells) != len(names):
        raise InputError(f"{where} has {len(cells)} cells, where the file has {len(names)} columns")
    values: dict[str, Any] = {key: cell for key, cell in zip(names, cells, strict=True) if key in KEYS and cell.strip()}
    for key in values.keys() - {"user_id", "request_id"}:
        values[key] = _json(values[key], f"{where} key {key}")
    return parse(values, where)


def parse_line(line: bytes, where: str) -> Request:
    """A request from one line of JSON."""
    if len(line) > LONGEST:
        raise InputError(f"{where} is longer than {LONGEST >> 20} MiB")
    return parse(_json(line, where), where)


def _json(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise InputError(f"{where} is not a request: its brackets are nested too deep") from None
    except ValueError:  # Python reads no whole number of thousands of digits
        raise InputError(f"{where} has a number of too many digits") from None


def _require(columns: Sequence[str], name: str) -> None:
    for key in ("history", "candidates"):
        if key not in columns:
            raise InputError(f"{name} has no column {key}")
    for key in KEYS:
        if columns.count(key) > 1:
            raise InputError(f"{name} has column {key} twice")


def _rows(handle: IO[bytes], name: str) -> Iterator[Raw]:
    with pq.ParquetFile(handle) as file:
        there = file.schema_arrow.names
        _require(there, name)
        wanted = [column for column in KEYS if column in there]
        rows = (row for batch in file.iter_batches(PARQUET_ROWS, columns=wanted) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield Raw(row, f"{name} row {number}", parse)


def chunks(requests: Iterable[Request], prompts: int) -> Iterator[list[Request]]:
    """Requests in lists of about ``prompts`` candidates, and no more requests; a request is never split."""
    chunk: list[Request] = []
    count = 0
    for request in requests:
        chunk.append(request)
        count += max(1, len(request.candidates))
        if count >= prompts:
            yield chunk
            chunk, count = [], 0
    if chunk:
        yield chunk
