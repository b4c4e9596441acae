"""Whatever is in a log: every row is accounted for, nothing crashes, and the same log gives the same bytes."""

from __future__ import annotations

import gzip
import json
from hashlib import md5
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline.artifacts import file_digest, folder_digest
from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.report import FileCounts
from dti_pipeline.paths import Paths
from tests.code.raw_logs import HEADER, adds_up, quarantine, rows, settings

# One bad row of every kind, in each form a log can have: (line, reason).

GOOD = [("1", "10", "4", "1000"), ("2", "11", "2.5", "1001"), ("1", "11", "5", "1002")]
BAD = [
    (("", "10", "4", "1000"), "user id missing"),
    (("1", " ", "4", "1000"), "item id missing"),
    (("1", "10", "", "1000"), "rating missing"),
    (("1", "10", "good", "1000"), "rating not a number"),
    (("1", "10", "nan", "1000"), "rating not a number"),
    (("1", "10", "inf", "1000"), "rating not a number"),
    (("1", "10", "5.5", "1000"), "rating outside the scale"),
    (("1", "10", "-1", "1000"), "rating outside the scale"),
    (("1", "10", "4", ""), "timestamp missing"),
    (("1", "10", "4", "soon"), "timestamp not a time"),
    (("1", "10", "4", "1e30"), "timestamp not a time"),
    (("1", "10", "4", "infinity"), "timestamp not a time"),
    (("1", "10", "4", "nan"), "timestamp not a time"),
    (("1", "10", "4", "-5"), "timestamp before 1970"),
]


def separated(separator: str, header: bool, extra: list[tuple[bytes, str]]) -> tuple[bytes, list[tuple[int, str]]]:
    lines = [separator.join(("user_id", "item_id", "rating", "timestamp")).encode()] if header else []
    expected = []
    lines.append(separator.join(GOOD[0]).encode())
    for line, reason in [(separator.join(row).encode(), reason) for row, reason in BAD] + extra:
        lines.append(line)
        expected.append((len(lines), reason))
    lines += [separator.join(row).encode() for row in GOOD[1:]]
    return b"\n".join(lines), expected


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("last", [True, False], ids=["final newline", "no final newline"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_every_kind_of_bad_csv_row_is_named(home: Paths, ending: bytes, last: bool, mark: bytes) -> None:
    content, expected = separated(
        ",",
        True,
        [
            (b"1,10,4", "wrong number of fields"),
            (b"1,10,4,1000,1", "wrong number of fields"),
            (b"", "blank line"),
            (b"  ", "blank line"),
            (b'1,"10,4,1000', "quotes do not match"),
            (b'1,"10"0,4,1000', "quotes do not match"),
            (b"caf\xe9,10,4,1000", "not UTF-8 text"),
        ],
    )
    path = home.home / "log.csv"
    path.write_bytes(mark + content.replace(b"\n", ending) + (ending if last else b""))

    report = ingest(settings(path, min_rating=0, max_rating=5), home)

    assert [(name, line, reason) for name, line, reason, _ in quarantine(home)] == [
        ("log.csv", line, reason) for line, reason in expected
    ]
    assert (report.read, report.kept, report.duplicates) == (len(expected) + 3, 3, 0)
    assert adds_up(report)
    raw = {line: raw for _, line, _, raw in quarantine(home)}
    assert raw[3] == ",10,4,1000"


@pytest.mark.parametrize(("separator", "name"), [("::", "ratings.dat"), ("\t", "u.data")])
def test_every_kind_of_bad_movielens_row_is_named(home: Paths, separator: str, name: str) -> None:
    extra = [
        (separator.join("123").encode(), "wrong number of fields"),
        (b"", "blank line"),
        (separator.join(("1", "\xe9", "4", "9")).encode("iso-8859-1"), "not UTF-8 text"),
    ]
    content, expected = separated(separator, False, extra)
    path = home.home / name
    path.write_bytes(content)
    report = ingest(settings(path, "movielens"), home)
    assert [(line, reason) for _, line, reason, _ in quarantine(home)] == expected
    assert report.kept == 3
    assert adds_up(report)


@pytest.mark.parametrize("packed", [False, True], ids=["jsonl", "jsonl.gz"])
@pytest.mark.parametrize(
    "keys",
    [("user_id", "parent_asin", "rating", "timestamp"), ("reviewerID", "asin", "overall", "unixReviewTime")],
    ids=["2023", "2018"],
)
def test_every_kind_of_bad_amazon_row_is_named(home: Paths, keys: tuple[str, ...], packed: bool) -> None:
    lines = [json.dumps(dict(zip(keys, GOOD[0], strict=True))).encode()]
    expected = []
    extra = [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"", "blank line"),
        (b'{"caf\xe9": 1}', "not UTF-8 text"),
        (b"{}", "user id missing"),
        (json.dumps({keys[0]: "1", keys[1]: None}).encode(), "item id missing"),
    ]
    for line, reason in [
        (json.dumps(dict(zip(keys, row, strict=True))).encode(), reason) for row, reason in BAD
    ] + extra:
        lines.append(line)
        expected.append((len(lines), reason))
    lines.append(json.dumps(dict(zip(keys, ("2", "11", 1.0, 1_600_000_000_123), strict=True))).encode())
    content = b"\n".join(lines) + b"\n"
    path = home.home / ("All_Beauty.jsonl.gz" if packed else "All_Beauty.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    meta = home.home / "meta_All_Beauty.jsonl"
    meta.write_text(
        f'{{"{keys[1]}": "10", "title": "  Soap,\\n plain"}}\nnot json\n{{"{keys[1]}": "11", "title": null}}\n'
    )

    report = ingest(settings(home.home, "amazon"), home)

    assert [(line, reason) for _, line, reason, _ in quarantine(home)] == expected
    assert adds_up(report)
    assert rows(home, "user_id, item_id, item_text, timestamp, rating") == [
        ("1", "10", "Soap, plain", 1000, 4.0),
        ("2", "11", "item 11", 1_600_000_000.123, 1.0),
    ]
    assert (report.untitled, report.untitled_items) == (1, 1)


def test_every_kind_of_bad_parquet_row_is_named(home: Paths) -> None:
    table = [GOOD[0], *(row for row, _ in BAD), GOOD[1]]
    columns = {
        name: [row[i] or None for row in table] for i, name in enumerate(("user_id", "item_id", "rating", "timestamp"))
    }
    pq.write_table(pa.table(columns), home.home / "log.parquet")
    report = ingest(settings(home.home / "log.parquet", min_rating=0, max_rating=5), home)
    assert [(line, reason) for _, line, reason, _ in quarantine(home)] == [
        (line, reason) for line, (_, reason) in enumerate(BAD, 2)
    ]
    assert adds_up(report)


# What is kept, and in which order.


@pytest.mark.parametrize(("ties", "first"), [("together", "cd"), ("ordered", "dc")])
def test_rows_are_ordered_by_user_and_time_and_equal_times_as_asked(home: Paths, ties: str, first: str) -> None:
    (home.home / "b.csv").write_text(f"{HEADER}\n10,a,1,5\n2,b,4,9\n2,c,4,7\n")
    (home.home / "a.csv").write_text(f"{HEADER}\n2,d,3,7\nx,e,5,1\n")
    ingest(settings(home.home, split={"ties": ties}), home)
    assert md5(b"c").hexdigest() < md5(b"d").hexdigest()
    second = 0 if ties == "together" else 1  # the place of the second one's request
    label = {"d": 0, "c": 1}
    assert rows(home, "user_id, item_id, timestamp, label, position, request, known") == [
        ("2", first[0], 7, label[first[0]], 0, 0, 0),
        ("2", first[1], 7, label[first[1]], 1, second, second),
        ("2", "b", 9, 1, 2, 2, 2),
        ("10", "a", 5, 0, 0, 0, 0),
        ("x", "e", 1, 1, 0, 0, 0),
    ]
    schema = pq.read_schema(home.events / "interactions.parquet")
    assert {field.name: str(field.type) for field in schema} == {
        "user_id": "string",
        "item_id": "string",
        "item_text": "string",
        "timestamp": "double",
        "rating": "double",
        "label": "int8",
        "split": "string",
        "position": "int32",
        "request": "int32",
        "known": "int32",
    }


def test_exact_duplicates_go_and_the_first_stays(home: Paths) -> None:
    # 4 and 4.0 are one rating; another rating, another time or another user makes another row.
    text = f"{HEADER}\n1,a,4,5\n1,b,4,5\n1,a,4.0,5\n1,a,3,5\n1,a,4,6\n2,a,4,5\n1,a,4,5\n"
    (home.home / "log.csv").write_text(text)
    report = ingest(settings(home.home / "log.csv"), home)
    assert (report.read, report.kept, report.duplicates) == (7, 5, 2)
    assert [row[:2] for row in rows(home, "user_id, item_id, rating")] == [
        ("1", "a"), ("1", "a"), ("1", "b"), ("1", "a"), ("2", "a"),
    ]  # fmt: skip


def test_one_moment_is_one_number_however_it_is_written(home: Paths) -> None:
    times = [
        "1425204000.123456", "1425204000123.456", "1425204000123456", "1425204000123456123",
        "2015-03-01T10:00:00.123456Z", "2015-03-01 10:00:00.123456123", "2015-03-01T12:00:00.123456+02:00",
    ]  # fmt: skip
    body = "".join(f"1,{i},4,{time}\n" for i, time in enumerate(times))
    (home.home / "log.csv").write_text(f"{HEADER}\n{body}")
    report = ingest(settings(home.home / "log.csv"), home)
    assert rows(home, "timestamp", "GROUP BY ALL") == [(1425204000.123456,)]
    assert not report.whole_seconds


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_is_read_through_its_column_mapping(home: Paths, form: str) -> None:
    records = [
        {"who": "u/1", "what": "a,1", "stars~": 4, "when": "2020-01-01", "name": 'The "A", again'},
        {"who": "u/1", "what": "b", "stars~": 2, "when": "2020-01-02", "name": "B"},
    ]
    path = home.home / f"log.{form}"
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        mark = "," if form == "csv" else "\t"
        quoted = [mark.join('"' + str(v).replace('"', '""') + '"' for v in record.values()) for record in records]
        path.write_text("\n".join([mark.join(records[0]), *quoted]))
    columns = {"user_id": "who", "item_id": "what", "rating": "stars~", "timestamp": "when", "item_text": "name"}
    ingest(settings(path, columns=columns), home)
    assert rows(home, "user_id, item_id, item_text, timestamp, rating") == [
        ("u/1", "a,1", 'The "A", again', 1577836800, 4.0),
        ("u/1", "b", "B", 1577923200, 2.0),
    ]


def test_a_table_takes_titles_from_a_file_of_their_own(home: Paths) -> None:
    (home.home / "log.csv").write_text(f"{HEADER}\n1,a,4,5\n1,b,4,6\n")
    (home.home / "titles.csv").write_text("sku;label\na;First\na;Second\nb;\n")
    config = settings(home.home, items_path=str(home.home / "titles.csv"), item_columns=["sku", "label"])
    report = ingest(config, home)
    assert rows(home, "item_text") == [("First",), ("item b",)]
    assert report.untitled == 1


def test_movielens_titles_carry_their_genres(home: Paths) -> None:
    (home.home / "ratings.dat").write_text("1::1::5::10\n1::2::5::11\n1::3::5::12\n")
    (home.home / "movies.dat").write_bytes(
        "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Misérables, Les (1995)::Drama".encode("iso-8859-1")
    )
    ingest(settings(home.home, "movielens"), home)
    assert rows(home, "item_text") == [
        ("Toy Story (1995) Animation, Children's, Comedy",),
        ("Misérables, Les (1995) Drama",),
        ("item 3",),
    ]


def test_movielens_csv_form(home: Paths) -> None:
    (home.home / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.5,10\n1,2,0.5,11\n")
    (home.home / "movies.csv").write_text(
        'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n'
        '2,"11\'09""01 (2002)",(no genres listed)\n'
    )
    (home.home / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,1,fun,10\n")
    ingest(settings(home.home, "movielens"), home)
    assert rows(home, "item_text, rating") == [
        ("American President, The (1995) Comedy, Drama", 4.5),
        ("11'09\"01 (2002)", 0.5),
    ]


def test_movielens_100k_form(home: Paths) -> None:
    flags = "|".join("1" if i in (3, 5) else "0" for i in range(19))
    (home.home / "u.data").write_text("196\t1\t3\t881250949\n")
    (home.home / "u.item").write_bytes(f"1|Misérable (1995)|01-Jan-1995||http://x|{flags}\n".encode("iso-8859-1"))
    ingest(settings(home.home, "movielens"), home)
    assert rows(home, "user_id, item_text, timestamp") == [("196", "Misérable (1995) Animation, Comedy", 881250949)]


def test_a_log_without_timestamps_keeps_its_order(home: Paths) -> None:
    (home.home / "ratings.dat").write_text("1::9::5\n1::3::5\n2::9::1\n1::9::5\n")
    report = ingest(settings(home.home, "movielens"), home)
    assert rows(home, "user_id, item_id, timestamp, position") == [
        ("1", "9", None, 0), ("1", "3", None, 1), ("1", "9", None, 2), ("2", "9", None, 0),
    ]  # fmt: skip
    assert report.clock is False
    assert report.duplicates == 0


def test_the_rating_scale_is_that_of_the_source_unless_given(home: Paths) -> None:
    (home.home / "ratings.dat").write_text("1::1::10::5\n1::2::11::6\n")
    assert ingest(settings(home.home, "movietweetings"), home).kept == 1
    assert ingest(settings(home.home, "movietweetings", max_rating=20), home).kept == 2


def test_max_users_keeps_whole_histories_and_counts_the_rest_apart(home: Paths) -> None:
    body = "".join(f"{user},{item},4,{item}\n" for user in range(50) for item in range(3))
    (home.home / "log.csv").write_text(f"{HEADER}\n{body}7,1,bad,1\nbroken\n" + "7,1,4,1\n")
    whole = ingest(settings(home.home / "log.csv"), home)
    part = ingest(settings(home.home / "log.csv", max_users=10), home)
    assert (part.users, part.users_left_out, part.kept) == (10, 40, 30)
    assert part.read + part.rows_left_out == whole.read == 153
    assert adds_up(part)
    assert (home.home / "data/events/quarantine.parquet").is_file()
    assert ("log.csv", 153, "wrong number of fields", "broken") in quarantine(home)


# Again, and with one file more.


def test_the_same_log_again_changes_nothing_and_parses_nothing(home: Paths) -> None:
    (home.home / "log.csv").write_text(f"{HEADER}\n1,a,4,5\n1,b,x,6\n")
    first = ingest(settings(home.home / "log.csv"), home)
    events, parts = folder_digest(home.events), {path: path.stat().st_mtime_ns for path in home.staged.iterdir()}
    assert ingest(settings(home.home / "log.csv"), home) == first
    assert folder_digest(home.events) == events
    assert {path: path.stat().st_mtime_ns for path in home.staged.iterdir()} == parts


def test_a_new_file_costs_only_itself_and_the_result_is_that_of_all_files_at_once(home: Paths, tmp_path: Path) -> None:
    raw = home.home / "raw"
    raw.mkdir()
    (raw / "b.csv").write_text(f"{HEADER}\n1,a,4,5\n1,a,4,5\n")
    ingest(settings(raw), home)
    before = {path: path.stat().st_mtime_ns for path in home.staged.iterdir()}
    (raw / "a.csv").write_text(f"{HEADER}\n1,c,4,4\n1,a,4,5\n2,z,bad,1\n")
    both = ingest(settings(raw), home)
    assert (both.read, both.kept, both.duplicates, both.quarantined) == (5, 2, 2, 1)
    assert both.files == {"a.csv": FileCounts(3, 1), "b.csv": FileCounts(2, 0)}
    after = {path: path.stat().st_mtime_ns for path in home.staged.iterdir()}
    assert len(after) == 2
    assert before.items() <= after.items()

    fresh = Paths(tmp_path / "fresh")
    ingest(settings(raw), fresh)
    assert folder_digest(fresh.events) == folder_digest(home.events)
    assert folder_digest(fresh.staged) == folder_digest(home.staged)

    (raw / "b.csv").unlink()
    assert ingest(settings(raw), home).kept == 2
    assert len(list(home.staged.iterdir())) == 1


def test_two_files_that_hold_the_same_are_both_read(home: Paths) -> None:
    for name in ("a.csv", "b.csv"):
        (home.home / name).write_text(f"{HEADER}\n1,a,4,5\n")
    report = ingest(settings(home.home), home)
    assert (report.read, report.kept, report.duplicates) == (2, 1, 1)


def test_bytes_do_not_depend_on_the_number_of_threads(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "".join(f"{i % 97},{i * 7 % 1009},{i % 5 + 1},{i * 31 % 100_003}\n" for i in range(30_000))
    (home.home / "log.csv").write_text(f"{HEADER}\n{body}")
    connect, digests = duckdb.connect, set()
    for threads in (1, 4):
        monkeypatch.setattr(duckdb, "connect", lambda threads=threads: connect(config={"threads": threads}))
        target = Paths(home.home / str(threads))
        ingest(settings(home.home / "log.csv"), target)
        digests.add((file_digest(target.events / "interactions.parquet"), folder_digest(target.staged)))
    assert len(digests) == 1


def test_a_failure_leaves_the_old_events(home: Paths) -> None:
    (home.home / "log.csv").write_text(f"{HEADER}\n1,a,4,5\n")
    ingest(settings(home.home / "log.csv"), home)
    before = folder_digest(home.events)
    (home.home / "log.csv").write_text(f"{HEADER}\n1,a,bad,5\n")
    with pytest.raises(InputError, match=r"no usable row among 1: log.csv line 2, for one: rating not a number"):
        ingest(settings(home.home / "log.csv"), home)
    assert folder_digest(home.events) == before
    assert [path.name for path in home.events.parent.iterdir() if path.name.startswith(".")] == []


def test_a_log_named_by_its_file_takes_titles_from_beside_it_only(home: Paths) -> None:
    (home.home / "ratings.dat").write_text("1::1::5::10\n")
    (home.home / "deeper").mkdir()
    (home.home / "deeper" / "movies.dat").write_text("1::Wrong (1999)::Drama\n")
    assert ingest(settings(home.home / "ratings.dat", "movielens"), home).untitled == 1
    (home.home / "movies.dat").write_text("1::Right (1999)::Drama\n")
    ingest(settings(home.home / "ratings.dat", "movielens"), home)
    assert rows(home, "item_text") == [("Right (1999) Drama",)]
