"""A log that cannot be read at all is refused in one sentence that names it."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.paths import Paths
from tests.code.raw_logs import HEADER, settings


def said(config: Config, paths: Paths) -> str:
    with pytest.raises(InputError) as caught:
        ingest(config, paths)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_a_path_that_does_not_exist(home: Paths) -> None:
    assert said(settings("nowhere"), home) == (
        f"params key `events.path` names {home.home / 'nowhere'}, which does not exist"
    )


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "log.csv.gz"])
def test_an_empty_file(home: Paths, name: str) -> None:
    (home.home / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert "is an empty log: it has no rows" in said(settings(home.home / name), home)


def test_a_header_alone(home: Paths) -> None:
    (home.home / "log.csv").write_text(HEADER + "\n")
    assert "is an empty log: it has no rows" in said(settings(home.home / "log.csv"), home)


def test_an_empty_parquet_file(home: Paths) -> None:
    names = ["user_id", "item_id", "rating", "timestamp"]
    pq.write_table(pa.table([pa.array([], pa.string())] * 4, names=names), home.home / "log.parquet")
    assert "is an empty log: it has no rows" in said(settings(home.home / "log.parquet"), home)


@pytest.mark.parametrize("source", ["movielens", "movietweetings", "amazon", "table"])
def test_a_folder_without_a_log_says_what_was_looked_for(home: Paths, source: str) -> None:
    empty = home.home / "empty"
    empty.mkdir()
    assert f"has no {source} log: looked for " in said(settings(empty, source), home)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_table_without_the_mapped_column(home: Paths, form: str) -> None:
    path = home.home / f"log.{form}"
    record = {"user_id": "1", "item_id": "a", "stars": 4, "timestamp": 5}
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([record]), path)
    else:
        path.write_text(json.dumps(record) if form == "jsonl" else "user_id,item_id,stars,timestamp\n1,a,4,5")
    assert said(settings(path), home) == (
        f"params key `events.columns.rating` names the column 'rating', which {path} does not have:"
        " it has user_id, item_id, stars, timestamp"
    )


def test_titles_without_the_mapped_column(home: Paths) -> None:
    (home.home / "log.csv").write_text(f"{HEADER}\n1,a,4,5\n")
    (home.home / "titles.csv").write_text("item_id,name\na,A\n")
    sentence = said(settings(home.home / "log.csv", items_path=str(home.home / "titles.csv")), home)
    assert sentence.startswith("params key `events.item_columns` names the column 'item_text'")


def test_titles_that_are_not_there(home: Paths) -> None:
    (home.home / "log.csv").write_text(f"{HEADER}\n1,a,4,5\n")
    assert "`events.items_path`" in said(settings(home.home / "log.csv", items_path="titles.csv"), home)


@pytest.mark.parametrize("broken", [b"PK\x03\x04 and no more", b""])
def test_a_corrupt_zip(home: Paths, broken: bytes) -> None:
    (home.home / "ml-1m.zip").write_bytes(broken)
    assert "which is not a whole zip archive" in said(settings(home.home / "ml-1m.zip", "movielens"), home)


@pytest.mark.parametrize("keep", [1, 30, -4])
def test_a_truncated_gzip_file(home: Paths, keep: int) -> None:
    whole = gzip.compress(f"{HEADER}\n{''.join(f'1,{i},4,5' + chr(10) for i in range(9999))}".encode())
    path = home.home / "log.csv.gz"
    path.write_bytes(whole[:keep])
    assert f"{path} is not a whole gzip file" in said(settings(path), home)
    assert not list(home.staged.rglob("*.parquet")) if home.staged.is_dir() else True


@pytest.mark.parametrize("content", [b"", b"PAR1", b"user_id,item_id", b"PAR1" + b"\0" * 100 + b"PAR1"])
def test_a_file_that_is_not_parquet(home: Paths, content: bytes) -> None:
    (home.home / "log.parquet").write_bytes(content)
    assert said(settings(home.home / "log.parquet"), home) == f"{home.home / 'log.parquet'} is not a Parquet file"


def test_a_parquet_file_with_a_broken_page(home: Paths) -> None:
    table = pa.table({name: [str(i) for i in range(5000)] for name in ("user_id", "item_id", "rating", "timestamp")})
    path = home.home / "log.parquet"
    pq.write_table(table, path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[100:4000] = b"\xff" * 3900
    path.write_bytes(content)
    assert str(path) in said(settings(path), home)


def test_files_with_and_without_a_clock_are_not_mixed(home: Paths) -> None:
    (home.home / "ratings.dat").write_text("1::1::5::10\n")
    (home.home / "ratings_more.dat").write_text("1::2::5\n")
    assert "ratings_more.dat has no timestamps and other files of the log do" in said(
        settings(home.home, "movielens"), home
    )


def test_a_memory_limit_that_is_no_size(home: Paths) -> None:
    (home.home / "log.csv").write_text(f"{HEADER}\n1,a,4,5\n")
    assert "`events.memory_limit`" in said(settings(home.home / "log.csv", memory_limit="much"), home)


def test_a_file_of_another_kind_is_shown_in_short(home: Paths) -> None:
    (home.home / "log.csv").write_bytes(bytes(range(14, 256)) * 2000)
    sentence = said(settings(home.home / "log.csv"), home)
    assert "`events.columns.user_id`" in sentence
    assert len(sentence) < 1500
    assert sentence.isprintable()


# What is known when, and a log's own split.

COLUMNS = {"request_id": "request", "split": "part"}
OWN = {"columns": COLUMNS, "split": {"rule": "column"}}


def write_own(home: Paths, *lines: str) -> str:
    path = home.home / "log.csv"
    path.write_text("\n".join([f"{HEADER},request,part", *lines, ""]))
    return str(path)


def test_a_delay_without_a_clock(home: Paths) -> None:
    (home.home / "ratings.dat").write_text("1::1::5\n1::2::5\n")
    assert said(settings(home.home, "movielens", split={"feedback_delay": 3600}), home) == (
        "the log has no timestamps, which `split.feedback_delay: 3600` needs: set it to null"
    )


def test_a_request_of_two_users(home: Paths) -> None:
    path = write_own(home, "1,a,4,5,q1,train", "2,b,4,5,q2,train", "1,c,4,6,q2,train")
    assert said(settings(path, columns={"request_id": "request"}), home) == (
        "params key `events.columns.request_id` must name a column whose values belong to one user each:"
        " 'q2' has rows of users '1' and '2'"
    )


def test_a_row_that_trains_behind_one_that_tests(home: Paths) -> None:
    path = write_own(home, "1,a,4,5,q1,train", "1,b,4,7,q2,train", "1,c,4,6,q3,test")
    assert said(settings(path, **OWN), home) == (
        "log.csv line 3 is of split train, log.csv line 4 before it of split test: `split.rule: column` needs each"
        " user's rows to go train, validation, test in time, so that no row learns from what judges"
    )


@pytest.mark.parametrize("requests", [True, False], ids=["ids", "time stamps"])
def test_a_request_in_two_splits(home: Paths, requests: bool) -> None:
    path = write_own(home, "1,a,4,5,q1,train", "1,b,4,6,q2,train", "1,c,4,6,q2,dev")
    columns = COLUMNS if requests else {"split": "part"}
    sentence = said(settings(path, columns=columns, split={"rule": "column"}), home)
    assert "one request, which is never parted" in sentence
    assert "log.csv line 3" in sentence
    assert "log.csv line 4" in sentence
    if not requests:  # whoever has it so can say that the order inside a second counts
        ordered = settings(path, columns=columns, split={"rule": "column", "ties": "ordered"})
        assert ingest(ordered, home).splits["validation"].rows == 1


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (
            {"events": {"source": "table"}, "split": {"rule": "column"}},
            "params key `events.columns.split` must be a column's name where `split.rule` is column, not None",
        ),
        (
            {"events": {"source": "table", "columns": {"split": "part"}}},
            "params key `events.columns.split` must be null where `split.rule` is global_time, which would not read it,"
            " not 'part'",
        ),
        (
            {"events": {"source": "movielens", "columns": {"request_id": "request"}}},
            "params key `events.columns.request_id` must be null for `events.source: movielens`, since only a table"
            " names its columns, not 'request'",
        ),
        (
            {"split": {"feedback_delay": -1}},
            "params key `split.feedback_delay` must be a number from 0 or null, not -1",
        ),
    ],
)
def test_columns_that_nothing_would_read(params: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        from_plain(Config, params)
    assert str(caught.value) == sentence
