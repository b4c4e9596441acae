"""Kinds of input that real logs have, what each of them gets, and a trial of each: the table in docs/reliability.md.

``python -m tests.input_kinds`` writes the table.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline.config import Config, ValidationConfig, load
from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.report import IngestReport
from dti_pipeline.paths import Paths
from dti_pipeline.serving.requests import parse_line
from dti_pipeline.validation.validate import validate
from tests.code.raw_logs import HEADER, quarantine, rows, settings

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- made by `python -m tests.input_kinds` -->\n", "<!-- end -->"


class Kind(NamedTuple):
    """A kind of input, what it gets, in plain words, and a trial that raises where it gets something else."""

    of: str  # the table's first column
    name: str
    gets: str
    tried: Callable[[Paths], None]


KINDS: list[Kind] = []


def kind(of: str, name: str, gets: str) -> Callable[[Callable[[Paths], None]], Callable[[Paths], None]]:
    def add(tried: Callable[[Paths], None]) -> Callable[[Paths], None]:
        KINDS.append(Kind(of, name, gets, tried))
        return tried

    return add


# --- how a trial is written


def lines(*body: str, header: str = HEADER) -> str:
    return "\n".join([header, *body, ""])


def ratings(user: str = "u", items: Sequence[str] = ("a", "b", "c")) -> list[str]:
    """Good rows of one user."""
    return [f"{user},{item},4,{1_600_000_000 + 10 * i}" for i, item in enumerate(items)]


def table(home: Paths, where: str = "log.parquet", **columns: Any) -> None:
    """A Parquet log; columns that are not given have plain values."""
    n = len(next(iter(columns.values()))) if columns else 3
    plain = {
        "user_id": ["u"] * n, "item_id": [f"i{k}" for k in range(n)], "rating": [4] * n,
        "timestamp": [1_600_000_000 + 10 * k for k in range(n)],
    }  # fmt: skip
    path = home.home / where
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(plain | columns), path)


def written(home: Paths, text: str | bytes, where: str = "log.csv") -> Path:
    path = home.home / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(home: Paths, where: str = "log.csv", **events: Any) -> IngestReport:
    return ingest(settings(home.home / where, **events), home)


def refused(home: Paths, says: str, where: str = "log.csv", **events: Any) -> None:
    with pytest.raises(InputError, match=says):
        read(home, where, **events)
    assert not home.events.exists()


def ids(home: Paths, column: str = "user_id") -> list[str]:
    return sorted({value for (value,) in rows(home, column)})


def reasons(home: Paths) -> list[str]:
    return [reason for _, _, reason, _ in quarantine(home)]


def checked(home: Paths, where: str = "log.csv", **events: Any) -> list[str]:
    """Names of the checks that a log fails."""
    config = settings(home.home / where, **events)
    limits = ValidationConfig(min_rows=1, min_users=1, min_targets=1, max_untitled_share=1, required=False)
    ingest(config, home)
    return [f"{one.suite}.{one.name}" for one in validate(replace(config, validation=limits), home).failures]


# --- ids


@kind("id", "12.0 beside 12, in CSV, JSONL or a float column", "one user, 12")
def _(home: Paths) -> None:
    written(home, lines(*ratings("12"), *ratings("12.0", "de")), "d/a.csv")
    written(home, '{"user_id": 12.0, "item_id": 1, "rating": 4, "timestamp": 1}\n', "d/b.jsonl")
    table(home, "d/c.parquet", user_id=[12.0, None, float("nan")], item_id=[1.0, 2.0, 3.0])
    read(home, "d")
    assert ids(home) == ["12"]
    assert reasons(home) == ["user id missing"] * 2
    assert "1" in ids(home, "item_id")
    assert "1.0" not in ids(home, "item_id")


@kind("id", "007 beside 7; ' 7' beside 7", "two users; one user")
def _(home: Paths) -> None:
    written(home, lines(*ratings("007"), *ratings("7"), *ratings(" 7 ", "xyz")))
    read(home)
    assert ids(home) == ["007", "7"]


@kind("id", "a number that lost digits: 1.23457E+11, or a float beyond its exact range", "row refused, counted")
def _(home: Paths) -> None:
    written(home, lines(*ratings("u"), "1.23457E+11,a,4,5", "1e+16,a,4,5", "9007199254740993.0,a,4,5"), "d/a.csv")
    table(home, "d/b.parquet", user_id=[float(1 << 53), 1e17, 3.0])
    table(home, "d/c.parquet", user_id=pa.array([float(1 << 24), 5.0, 6.0], pa.float32()))
    read(home, "d")
    assert reasons(home) == ["user id is a rounded number"] * 6
    assert ids(home) == ["3", "5", "6", "u"]


@kind("id", r"`\N`, NULL, null, None, nan, NaN, `<NA>`, NA, N/A, empty", "row refused as missing, counted")
def _(home: Paths) -> None:
    words = ["\\N", "NULL", "null", "None", "nan", "NaN", "<NA>", "NA", "N/A", ""]
    written(home, lines(*ratings("u"), *(f"{word},a,4,5" for word in words), *(f"u,{word},4,5" for word in words)))
    report = read(home)
    assert report.reasons == {"user id missing": 10, "item id missing": 10}
    assert ids(home) == ["u"]


@kind("id", "an id like SKU-1.0, 2.10, 12E5 or 1.5", "as it is")
def _(home: Paths) -> None:
    names = ["SKU-1.0", "2.10", "12E5", "1.5", "v1.0.0"]
    written(home, lines(*(row for name in names for row in ratings(name))))
    read(home)
    assert ids(home) == sorted(names)


# --- times


@kind("time", "milliseconds, newest row first", "order by the millisecond")
def _(home: Paths) -> None:
    written(home, lines(*(f"u,i{k},4,{1_600_000_000_000 + 150 * k}" for k in reversed(range(12)))))
    read(home)
    assert rows(home, "item_id, position, request") == [(f"i{k}", k, k) for k in range(12)]


@kind("time", "two events of one second with the same item and rating", "two rows; of one moment: one")
def _(home: Paths) -> None:
    written(home, lines("u,a,4,1600000000.25", "u,a,4,1600000000.75", "u,a,4,1600000000750", "u,b,4,1600000001"))
    report = read(home)
    assert (report.kept, report.duplicates, report.whole_seconds) == (3, 1, False)


@kind("time", "nanoseconds as numbers or in a Parquet column", "the microsecond")
def _(home: Paths) -> None:
    written(home, lines("u,a,4,1600000000123456789"), "d/a.csv")
    times = pa.array([1_600_000_000_123_456_789, 1_600_000_001_000_000_000, 1_600_000_002_000_000_000])
    table(home, "d/b.parquet", timestamp=times.cast(pa.timestamp("ns")))
    read(home, "d")
    assert rows(home, "timestamp", "WHERE position < 2 ORDER BY position") in (
        [(1600000000.123457,), (1600000000.123456,)],
        [(1600000000.123456,), (1600000000.123457,)],
    )


@kind("time", "no time in one row, or one before 1970", "row refused, counted")
def _(home: Paths) -> None:
    written(home, lines(*ratings(), "u,d,4,", "u,d,4,-5", "u,d,4,soon"))
    report = read(home)
    assert report.reasons == {"timestamp missing": 1, "timestamp before 1970": 1, "timestamp not a time": 1}


@kind("time", "a log without a clock, with repeats", "every row; `events.duplicates: drop` keeps the first")
def _(home: Paths) -> None:
    written(home, lines(*(f"u,{song},1" for song in "xyxzxyx"), header="user_id,item_id,rating"))
    report = read(home, columns={"timestamp": None})
    assert (report.kept, report.duplicates) == (7, 0)
    assert [item for (item,) in rows(home, "item_id", "ORDER BY position")] == list("xyxzxyx")
    report = read(home, columns={"timestamp": None}, duplicates="drop")
    assert (report.kept, report.duplicates) == (3, 4)


@kind("time", "a log with a clock, with repeats", "the first; `events.duplicates: keep` keeps all")
def _(home: Paths) -> None:
    written(home, lines("u,a,4,5", "u,a,4,5", "u,b,4,6"))
    assert read(home).duplicates == 1
    assert read(home, duplicates="keep").kept == 3


# --- Parquet


@kind("Parquet", "strings without the UTF-8 mark", "their text; bytes that are no UTF-8: row refused, counted")
def _(home: Paths) -> None:
    titles = pa.array(["Amélie".encode(), "Ünder".encode(), b"\xff\xfe"], pa.binary())
    table(home, item_text=titles)
    report = read(home, "log.parquet", columns={"item_text": "item_text"})
    assert ids(home, "item_text") == ["Amélie", "Ünder"]
    assert report.reasons == {"not UTF-8 text": 1}


@kind("Parquet", "folders named key=value", "the file's own column counts, the folder's name does not")
def _(home: Paths) -> None:
    for day in (1, 2):
        times = [datetime.datetime(2024, 1, day, hour) for hour in (3, 2, 1)]
        table(home, f"log/date=2024-01-0{day}/part.parquet", item_id=[f"{day}{k}" for k in range(3)], date=times)
    read(home, "log", columns={"timestamp": "date"})
    assert [item for (item,) in rows(home, "item_id", "ORDER BY position")] == ["12", "11", "10", "22", "21", "20"]


@kind("Parquet", "columns `Rating` and `rating`, or with a dot, or named file_row_number", "the one that is named")
def _(home: Paths) -> None:
    table(home, Rating=[1, 2, 3], file_row_number=[9, 9, 9], **{"a.b": ["x", "y", "z"]})
    read(home, "log.parquet", columns={"item_id": "a.b", "item_text": "file_row_number"})
    assert rows(home, "rating, item_id, item_text", "ORDER BY position") == [(4, x, "9") for x in "xyz"]


@kind("Parquet", "a list or a record where an id, a rating or a time is asked for", "file refused, column named")
def _(home: Paths) -> None:
    table(home, item_id=[["a"], ["b"], ["c"]])
    refused(home, "column 'item_id' holds list.*, which cannot be read as item id", "log.parquet")


@kind("Parquet", "a column of decimals, categories, UUIDs, 16-bit floats or nothing but nulls", "its values as text")
def _(home: Paths) -> None:
    table(
        home,
        user_id=pa.array(["12.00", "12.00", "13.00"]).cast(pa.decimal128(10, 2)),
        item_id=pa.array(["a", "b", "a"]).dictionary_encode(),
        request_id=pa.array([b"0123456789abcdef"] * 2 + [b"0123456789abcdeg"], pa.uuid()),
        rating=pa.array([1.0, 2.0, 3.0], pa.float32()).cast(pa.float16()),
        item_text=pa.nulls(3),
    )
    read(home, "log.parquet", columns={"request_id": "request_id", "item_text": "item_text"})
    assert ids(home) == ["12", "13"]
    assert rows(home, "rating, item_text") == [(1, "item a"), (2, "item b"), (3, "item a")]


@kind("Parquet", "a file that was cut, or none at all", "refused, file named")
def _(home: Paths) -> None:
    table(home)
    path = home.home / "log.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    refused(home, f"{path} is not a Parquet file", "log.parquet")


# --- text files


@kind("text", "UTF-16, with its mark or without", "refused: save it as UTF-8")
def _(home: Paths) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        written(home, lines(*ratings()).encode(encoding))
        refused(home, r"log\.csv .*UTF-16 text.* save it as UTF-8")


@kind("text", "gzip, zip, workbook, Parquet, bzip2, xz or Zstandard under a text file's name", "refused, kind named")
def _(home: Paths) -> None:
    marks = {b"\x1f\x8b\x08": "gzip", b"PK\x03\x04": "zip", b"PAR1": "Parquet", b"BZh9": "bzip2", b"\xfd7zXZ\0": "xz"}
    for mark, name in marks.items():
        written(home, mark + b"0123456789" * 10)
        refused(home, rf"log\.csv is an? {name}")


@kind("text", "lines that end in CR alone", "refused")
def _(home: Paths) -> None:
    written(home, lines(*ratings()).replace("\n", "\r"))
    refused(home, "lines that end in CR alone")


@kind("text", "ISO-8859-1 in single rows", "row refused, counted")
def _(home: Paths) -> None:
    written(home, lines(*ratings()).encode() + b"u,caf\xe9,4,5\n")
    assert read(home).reasons == {"not UTF-8 text": 1}


@kind("text", "a mark before UTF-8, CR LF, a missing last line end", "read")
def _(home: Paths) -> None:
    written(home, "\ufeff" + lines(*ratings()).replace("\n", "\r\n").rstrip())
    assert read(home).kept == 3


# --- folders


@kind("folder", "a folder or a file that is a link; a link to what is read anyway", "read; once, the link is listed")
def _(home: Paths) -> None:
    written(home, lines(*ratings("u")), "log/2023/a.csv")
    written(home, lines(*ratings("v")), "elsewhere/b.csv")
    (home.home / "log" / "2024").symlink_to(home.home / "elsewhere")
    (home.home / "log" / "2022").symlink_to(home.home / "log" / "2023")
    (home.home / "log" / "a.csv").symlink_to(home.home / "log" / "2023" / "a.csv")
    (home.home / "log" / "2023" / "up").symlink_to(home.home / "log")
    report = read(home, "log")
    assert (report.read, ids(home)) == (6, ["u", "v"])
    assert report.other_files.first == ("2022", "2023/up", "a.csv")


@kind("folder", "a link that leads nowhere; a pipe or a device", "refused, named")
def _(home: Paths) -> None:
    written(home, lines(*ratings()), "log/a.csv")
    (home.home / "log" / "b.csv").symlink_to("nowhere")
    refused(home, r"b\.csv is a link to nowhere, which does not exist", "log")
    (home.home / "log" / "b.csv").unlink()
    os.mkfifo(home.home / "log" / "b.csv")
    refused(home, r"b\.csv is a device, a pipe or a socket", "log")


@kind("folder", "a folder below the log that cannot be read", "refused, named")
def _(home: Paths) -> None:
    written(home, lines(*ratings()), "log/a.csv")
    real = os.scandir

    def shut(path: Any) -> Any:  # as for a person who is not root
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    (home.home / "log" / "shut").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", shut)
        refused(home, r"log/shut cannot be read: Permission denied", "log")


@kind("folder", "files of other kinds beside the log", "not read; counted and listed in the report")
def _(home: Paths) -> None:
    written(home, lines(*ratings()), "log/a.csv")
    written(home, "", "log/_SUCCESS")
    written(home, "x", "log/notes/b.xlsx")
    report = read(home, "log")
    assert (report.other_files.count, report.other_files.first) == (2, ("_SUCCESS", "notes/b.xlsx"))
    assert report.left_out() == ["2 files not read: _SUCCESS, notes/b.xlsx"]


@kind("folder", "names that end in capitals, A.CSV or B.JSONL.GZ", "read")
def _(home: Paths) -> None:
    import gzip

    written(home, lines(*ratings("u")), "log/A.CSV")
    row = b'{"user_id": "v", "item_id": 1, "rating": 4, "timestamp": 1}\n'
    written(home, gzip.compress(row), "log/B.JSONL.GZ")
    read(home, "log")
    assert ids(home) == ["u", "v"]


@kind("folder", "a log or a home whose path has a space, an accent, a quote, a bracket, = ? * % or #", "read")
def _(home: Paths) -> None:
    for name in ("my clicks", "é", "user_id=5", "it's", "a[1]", "a?b", "a*b", "a%20b", "a#b", "a{x,y}"):
        odd = Paths(home.home / name)
        table(odd, "raw/log.parquet")
        written(odd, lines(*ratings("v")), "raw/log.csv")
        assert ingest(settings(odd.home / "raw"), odd).users == 2
        events = pq.ParquetFile(odd.events / "interactions.parquet").read()
        assert set(events["user_id"].to_pylist()) == {"u", "v"}


@kind("folder", "a neighbour whose name the home's, taken for a pattern, would be like", "not read")
def _(home: Paths) -> None:
    table(home, "log1/a.parquet", user_id=["other"] * 3)
    table(home, "log[1]/a.parquet")
    read(home, "log[1]")
    assert ids(home) == ["u"]


# --- catalogues


@kind("catalogue", "a row without an id or a title, a broken row, an id twice", "counted by reason, kept aside")
def _(home: Paths) -> None:
    written(home, lines(*ratings()))
    written(home, "item_id,item_text\na,Alien\n,Heat\nb,NULL\nc\na,Aliens\n1e+16,Big\n", "items.csv")
    report = read(home, items_path=str(home.home / "items.csv"))
    counts = report.catalogue
    assert (counts.read, counts.kept, counts.quarantined, counts.repeated) == (6, 1, 4, 1)
    assert counts.reasons == {
        "item id is a rounded number": 1, "item id missing": 1, "title missing": 1, "wrong number of fields": 1,
    }  # fmt: skip
    aside = duckdb.sql(f"SELECT line, raw FROM '{home.events}/item_quarantine.parquet'").fetchall()
    assert aside == [(3, ",Heat"), (4, "b,NULL"), (5, "c"), (7, "1e+16,Big")]
    assert report.left_out() == [
        "of 6 catalogue rows 1 repeat an item, 4 quarantined: item id is a rounded number 1, item id missing 1,"
        " title missing 1, wrong number of fields 1"
    ]
    assert dict(rows(home, "item_id, item_text")) == {"a": "Alien", "b": "item b", "c": "item c"}


@kind("catalogue", "ids as floats beside whole numbers in the log", "matched")
def _(home: Paths) -> None:
    written(home, lines(*ratings("u", ("1", "2", "3"))))
    table(home, "items.parquet", item_id=[1.0, 2.0, 3.0], item_text=["A", "B", "C"])
    report = read(home, items_path=str(home.home / "items.parquet"))
    assert report.untitled == 0


# --- what validation finds


@kind("labels", "a file whose order is the label: a user's skips, then the clicks", "`dti validate` fails")
def _(home: Paths) -> None:
    body = (f"u{u},i{k},{1 + 4 * (k >= 10)}" for u in range(9) for k in range(20))
    written(home, lines(*body, header="user_id,item_id,rating"))
    assert "batch.click_later" in checked(home, columns={"timestamp": None})


@kind("Parquet", "a clean log, alone or beside CSV, with moments, or repeats without a clock", "`dti validate` passes")
def _(home: Paths) -> None:
    n = range(200)
    users, labels = [f"u{k // 20}" for k in n], [1 + 4 * (k * 7 % 5 > 2) for k in n]
    table(home, "d/a.parquet", user_id=users, rating=labels, timestamp=[1_600_000_000 + 100 * k for k in n])
    assert checked(home, "d") == []
    table(home, "d/a.parquet", user_id=users, rating=labels, timestamp=[1_600_000_000_000 + 130 * k for k in n])
    body = (f"v{k // 20},i{k},{label},{1_600_000_000_000 + 70 * k}" for k, label in enumerate(labels))
    written(home, lines(*body), "d/b.csv")
    assert checked(home, "d") == []
    body = (f"v{k // 20},i{k % 3},{label}" for k, label in enumerate(labels))
    written(home, lines(*body, header="user_id,item_id,rating"))
    assert checked(home, columns={"timestamp": None}) == []


# --- parameters


@kind("params.yaml", "not UTF-8", "refused, line named")
def _(home: Paths) -> None:
    home.params.write_bytes(b"training: {seed: 7}\n# Gr\xf6\xdfe\n")
    with pytest.raises(InputError, match=r"params\.yaml line 2 is not UTF-8 text"):
        load(home.params)


@kind("params.yaml", "a section or a key twice", "refused, line and key named")
def _(home: Paths) -> None:
    home.params.write_text("training: {seed: 7}\nmodel: {layers: 1}\ntraining: {seed: 8}\n")
    with pytest.raises(InputError, match=r"line 3 .*`training` stands twice"):
        load(home.params)


@kind("params.yaml", "with a byte order mark; a key left out", "read; its default")
def _(home: Paths) -> None:
    home.params.write_bytes(b"\xef\xbb\xbftraining: {seed: 8}\n")
    assert load(home.params).training.seed == 8
    assert load(home.params).split == Config().split


# --- requests


def answer(line: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as refusal:
        parse_line(line.encode(), "line 1")
    assert str(refusal.value).encode()  # it can be printed


@kind("request", "half a character in a text or an id", "an error for the line, key named")
def _(home: Paths) -> None:
    for entry in (r'{"item_text": "\ud83d"}', r'{"item_id": "\ud83d"}', r'{"item_id": "1", "genres": "\ud83d"}'):
        answer(f'{{"history": [], "candidates": [{entry}]}}', r"candidates\[0\]\.\w+ is not Unicode text")
    answer(r'{"user_id": "\ud83d", "history": [], "candidates": []}', "user_id is not Unicode text")


@kind("request", "brackets nested without end, a number of 5,000 digits", "an error for the line")
def _(home: Paths) -> None:
    answer("[" * 100_000, "nested too deep")
    answer(f'{{"user_id": {"9" * 5000}}}', "too many digits")


@kind("request", "times in milliseconds", "an error for the line, key named")
def _(home: Paths) -> None:
    answer('{"history": [], "candidates": [], "timestamp": 1600000000000}', "must be in seconds since 1970")


@kind("request", "an id written 12.0", "the item 12")
def _(home: Paths) -> None:
    request = parse_line(b'{"history": [], "candidates": [{"item_id": "12.0"}]}', "line 1")
    assert request.candidates[0].item_id == "12"


# --- the table


def rendered() -> str:
    lines = [f"| {one.of} | {one.name} | {one.gets} |" for one in KINDS]
    return "\n".join(["| input | kind | what it gets |", "|---|---|---|", *lines, ""])


def rewritten(document: str) -> str:
    """The document with the table and the number of kinds as they are."""
    before, _, rest = document.partition(BEGIN)
    text = f"{before}{BEGIN}{rendered()}{END}{rest.partition(END)[2]}"
    return re.sub(r"\*\*\d+ kinds\*\*", f"**{len(KINDS)} kinds**", text)


if __name__ == "__main__":
    DOCUMENT.write_text(rewritten(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
