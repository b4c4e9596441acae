"""Kinds of rows, text files and Parquet files, see :mod:`tests.kinds`."""

from __future__ import annotations

import datetime
import gzip

import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline.paths import Paths
from tests.code.raw_logs import quarantine, rows
from tests.kinds import ids, kind, lines, ratings, read, reasons, refused, table, written

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


@kind("id", "SQL, HTML, Markdown, shell, a path, an escape of a terminal", "as it is, a value and nothing else")
def _(home: Paths) -> None:
    words = ["'; DROP TABLE staged; --", "<script>alert(1)</script>", "[x](http://y)", "$(id)", "`id`", "../../x",
             "\x1b[31m", "{item_text}", "%s", "\U0001f600", "\u202ex"]  # fmt: skip
    written(home, lines(*(row for word in words for row in ratings(word, (word, "b", "c")))))
    before = {path.name for path in home.home.parent.iterdir()}
    assert read(home).kept == 3 * len(words)
    assert ids(home) == sorted(words)
    assert set(words) < set(ids(home, "item_id"))
    assert {path.name for path in home.home.parent.iterdir()} == before


@kind("id", "one of 10,000 characters", "as it is")
def _(home: Paths) -> None:
    written(home, lines(*ratings("u" * 10_000)))
    read(home)
    assert ids(home) == ["u" * 10_000]


# --- ratings


@kind("rating", "infinite, nan, 1e400, 0x4, a word, or with a decimal comma", "row refused, counted")
def _(home: Paths) -> None:
    words = ["inf", "-inf", "nan", "1e400", "0x4", "good", '"4,5"', "4;5"]
    written(home, lines(*ratings(), *(f"u,x,{word},5" for word in words)))
    assert read(home).reasons == {"rating not a number": len(words)}


@kind("rating", "outside `events.min_rating` and `max_rating`; none", "row refused, counted")
def _(home: Paths) -> None:
    written(home, lines(*ratings(), "u,x,6,5", "u,x,-1,5", "u,x,,5"))
    found = read(home, min_rating=0.0, max_rating=5.0).reasons
    assert found == {"rating outside the scale": 2, "rating missing": 1}


# --- times


@kind("time", "ISO 8601 with a zone, without one, or a date alone", "the moment; UTC where no zone stands")
def _(home: Paths) -> None:
    moments = ["2020-01-01T00:00:00Z", "2020-01-01T02:00:00+02:00", "2020-01-01 00:00:00", "2020-01-01"]
    written(home, lines(*(f"u,i{k},4,{moment}" for k, moment in enumerate(moments))))
    read(home)
    assert rows(home, "DISTINCT timestamp") == [(1577836800.0,)]


@kind("time", "a leap second, a month first, a date like 9999-12-31", "row refused, counted")
def _(home: Paths) -> None:
    words = ["2016-12-31T23:59:60Z", "01/31/2020", "99999999999999999999", "9999-12-31"]
    written(home, lines(*ratings(), *(f"u,x,4,{word}" for word in words)))
    assert read(home).reasons == {"timestamp not a time": len(words)}


@kind("time", "a whole number like 20200101", "Unix time, in August 1970")
def _(home: Paths) -> None:
    written(home, lines(*ratings(), "u,x,4,20200101"))
    read(home)
    assert rows(home, "timestamp", "WHERE item_id = 'x'") == [(20200101.0,)]


# --- JSON


@kind("JSON", "a list or a record where an id, a rating or a time is asked for", "row refused, counted")
def _(home: Paths) -> None:
    bad = ['"user_id": {"a": 1}', '"item_id": [1]', '"rating": [4]', '"timestamp": {}']
    good = {"user_id": '"u"', "item_id": "1", "rating": "4", "timestamp": "5"}
    body = [good, *({**good, one.partition(":")[0].strip('"'): one.partition(": ")[2]} for one in bad)]
    written(home, "".join("{" + ", ".join(f'"{k}": {v}' for k, v in row.items()) + "}\n" for row in body), "log.jsonl")
    assert read(home, "log.jsonl").reasons == {"a list or a record in place of a value": 4}


@kind("JSON", "a line that is no object, is cut, or nests without end", "row refused, counted")
def _(home: Paths) -> None:
    good = '{"user_id": "u", "item_id": 1, "rating": 4, "timestamp": 5}\n'
    written(home, good + f"[1]\n{good[:30]}\n" + "[" * 100_000 + "\n" + '{"a":' * 50_000, "log.jsonl")
    assert read(home, "log.jsonl").reasons == {"not a JSON object": 1, "not JSON": 3}


@kind("JSON", "a key twice in an object", "the first")
def _(home: Paths) -> None:
    written(home, '{"user_id": "u", "user_id": "v", "item_id": 1, "rating": 4, "timestamp": 5}\n', "log.jsonl")
    read(home, "log.jsonl")
    assert ids(home) == ["u"]


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


@kind("Parquet", "two columns of one name", "file refused, column named")
def _(home: Paths) -> None:
    columns = [pa.array(["u"]), pa.array(["a"]), pa.array([4]), pa.array([5]), pa.array([3])]
    pq.write_table(
        pa.table(columns, ["user_id", "item_id", "rating", "timestamp", "rating"]), home.home / "log.parquet"
    )
    refused(home, "two columns 'rating'", "log.parquet")


@kind("Parquet", "a value of more than 8 MiB", "row refused, counted; the beginning of it is kept aside")
def _(home: Paths) -> None:
    table(home, item_text=["x " * 4_500_000, "b", "c"])
    assert read(home, "log.parquet", columns={"item_text": "item_text"}).reasons == {"longer than 8 MiB": 1}
    assert len(quarantine(home)[0][3]) == 1000


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


@kind("text", "a title or a line of more than 8 MiB", "row refused, counted; the beginning of it is kept aside")
def _(home: Paths) -> None:
    written(home, lines(*ratings(), "u,d,4," + "9" * 9_000_000, *ratings("v")))
    assert read(home).reasons == {"longer than 8 MiB": 1}
    assert [(line, len(raw)) for _, line, _, raw in quarantine(home)] == [(5, 1000)]
    assert ids(home) == ["u", "v"]


@kind("text", "a small gzip that unpacks to a line without end", "row refused, counted; memory stays")
def _(home: Paths) -> None:
    written(home, gzip.compress((lines(*ratings()) + "x" * (20 << 20)).encode(), 1), "log.csv.gz")
    assert read(home, "log.csv.gz").reasons == {"longer than 8 MiB": 1}


@kind("text", "a first line of more than 8 MiB", "refused, line named")
def _(home: Paths) -> None:
    written(home, "x" * (9 << 20))
    refused(home, r"log\.csv line 1 is longer than 8 MiB")


@kind("text", "a gzip that was cut, or whose bytes were damaged", "refused, file named")
def _(home: Paths) -> None:
    packed = gzip.compress(lines(*ratings()).encode() * 100, mtime=0)
    for broken in (packed[:-9], packed[:40] + b"\xff" + packed[41:]):
        written(home, broken, "log.csv.gz")
        refused(home, r"log\.csv\.gz is not a whole gzip file", "log.csv.gz")


@kind("text", "a quote that nothing closes", "row refused, counted; the next line is its own")
def _(home: Paths) -> None:
    written(home, lines('u,"z,4,5', *ratings()))
    assert read(home).reasons == {"quotes do not match": 1}


@kind("text", "a title that holds a line end, in quotes", "one row")
def _(home: Paths) -> None:
    written(home, lines('u,a,4,5,"one\ntwo"', "u,b,4,6,x", header="user_id,item_id,rating,timestamp,title"))
    read(home, columns={"item_text": "title"})
    assert rows(home, "item_text", "WHERE item_id = 'a'") == [("one two",)]


@kind("text", "fields parted by semicolons, tabs or bars", "read")
def _(home: Paths) -> None:
    for mark in (";", "\t", "|"):
        written(home, lines(*ratings()).replace(",", mark))
        assert read(home).kept == 3


@kind("text", "a header again within the file", "row refused, counted")
def _(home: Paths) -> None:
    written(home, lines(*ratings()) + lines(*ratings("v")))
    assert read(home).reasons == {"rating not a number": 1}


@kind("text", "two columns of one name", "file refused, column named")
def _(home: Paths) -> None:
    written(home, lines("u,a,4,5,5", header="user_id,item_id,rating,rating,timestamp"))
    refused(home, "has two columns 'rating': which one is meant cannot be told")


@kind("text", "a header that lacks a column", "file refused; the columns that it has are named")
def _(home: Paths) -> None:
    written(home, lines("u,a,4", header="user,item_id,rating"))
    refused(home, "needs the column 'user_id'.* it has user, item_id, rating|names the column 'user_id'")


@kind("text", "nothing, or a header alone; no row that is good", "refused; the first bad row is named")
def _(home: Paths) -> None:
    for body in ("", lines()):
        written(home, body)
        refused(home, "is an empty log: it has no rows")
    written(home, lines("x", "u,a,bad,5"))
    refused(home, r"has no usable row among 2: log\.csv line 2, for one: wrong number of fields")


@kind("text", "a zero byte within an id", "as it is")
def _(home: Paths) -> None:
    written(home, lines(*ratings("u\0v")))
    read(home)
    assert ids(home) == ["u\0v"]
