"""A log in buckets of users: every output is the bytes of one piece, however many buckets there are."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dti_pipeline import artifacts
from dti_pipeline.config import Config, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events import buckets
from dti_pipeline.events.buckets import cut
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.settings import SLOTS
from dti_pipeline.paths import Paths
from tests.code.raw_logs import adds_up, rows, settings

pytestmark = pytest.mark.slow  # whole stages: `make test` runs them

COLUMNS = {"request_id": "request", "item_text": "title"}
GLOBAL = {"rule": "global_time", "min_history": 2}


def write_log(folder: Path, users: int = 40, rows: int = 600) -> None:
    """Three files of one log, of which two are equal, with every kind of row: repeats, bad ones, ties, requests of
    several rows, titles that differ, and ids of users that are numbers, words, and missing."""
    draw = np.random.default_rng(3)
    folder.mkdir()
    lines = []
    for row in range(rows):
        number = int(users * draw.random() ** 2)
        user = f"u{number}" if number % 3 else f"{number}"
        user, rating = ("" if row % 97 == 0 else user), ("bad" if row % 53 == 0 else int(draw.integers(1, 6)))
        time = 1000 + int(draw.integers(0, 300)) + (0 if row % 5 else 0.25)
        item, title = int(draw.integers(0, 30)), f"title {row % 7}" if row % 4 else ""
        lines.append(
            f"{user},{item},{rating},{time},{user}-{int(time) // 3},{title},{row % 2},{'red' if number % 2 else ''}"
        )
        lines += lines[-1:] * (row % 41 == 0)
    header = "user_id,item_id,rating,timestamp,request,title,place,team"
    for name, part in (("a", lines[:200]), ("b", lines[200:]), ("c", lines[:200])):
        (folder / f"{name}.csv").write_text("\n".join([header, *part]) + "\n")
    (folder.parent / "items.csv").write_text("item_id,item_text,kind\n1,One,x\n2,Two,\n2,Again,z\n,nobody,\n")
    (folder.parent / "users.csv").write_text("user_id,age\nu1,30\nu2,\nu1,40\n")


def made_in(number: int, log: Config, paths: Paths) -> dict[str, str]:
    """Digest of each output: the manifest holds report, configuration and inputs."""
    report = ingest(replace(log, events=replace(log.events, buckets=number)), paths)
    assert adds_up(report)
    return {path.name: artifacts.file_digest(path) for path in paths.events.iterdir()}


@pytest.mark.parametrize(
    ("split", "events", "tokens"),
    [
        (GLOBAL, {}, {}),
        (GLOBAL | {"feedback_delay": 20, "feedback_until": "test_start"}, {"columns": COLUMNS}, {}),
        (GLOBAL | {"ties": "ordered"}, {"duplicates": "keep", "items_path": "items.csv"}, {}),
        ({"rule": "user_order"}, {"max_users": 7, "columns": {"timestamp": None}}, {}),
        (GLOBAL, {"users_path": "users.csv", "items_path": "items.csv"},
            {"template": "{item_text} {place} {kind}", "user_template": "{age} {team}"}),
    ],
    ids=["global_time", "requests and delays", "repeats", "some users without a clock", "columns of the log"],
)  # fmt: skip
def test_the_bytes_are_those_of_one_piece(
    home: Paths, split: dict[str, Any], events: dict[str, Any], tokens: dict[str, Any]
) -> None:
    write_log(home.home / "log")
    log = replace(settings("log", split=split, **events), tokens=TokensConfig(**tokens))
    whole = made_in(1, log, home)
    assert made_in(3, log, home) == whole
    assert made_in(8, log, home) == whole
    assert not list(home.events.parent.glob(".buckets.*"))


def test_a_split_of_the_logs_own_is_read_and_judged_in_buckets(home: Paths) -> None:
    lines = [
        f"u{user},i{row},3,{row},{name}" for user in range(9) for row, name in enumerate(("train", "valid", "test"))
    ]
    raw, header = home.home / "log.csv", "user_id,item_id,rating,timestamp,part"
    raw.write_text("\n".join([header, *lines]) + "\n")
    log = settings(raw, split={"rule": "column"}, columns={"split": "part"})
    whole = made_in(1, log, home)
    assert made_in(4, log, home) == whole
    raw.write_text("\n".join([header, *lines, "u4,i9,3,9,train", "u2,i9,3,9,train"]) + "\n")
    sentences = []
    for number in (1, 4):
        with pytest.raises(InputError, match="line 30 is of split train") as refused:
            made_in(number, log, home)
        sentences.append(str(refused.value))
    assert sentences[0] == sentences[1]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["", "u1,a,bad,1,r"], "no usable row among 2"),
        (["u1,a,3,1,r", "u2,a,3,1,r"], "rows of users 'u1' and 'u2'"),
        (["u1,a,3,1,r", "u2,a,3,2,s"], "no row is left to train on"),
    ],
)
def test_what_is_wrong_with_the_whole_log_is_said_as_in_one_piece(home: Paths, lines: list[str], sentence: str) -> None:
    raw = home.home / "log.csv"
    raw.write_text("\n".join(["user_id,item_id,rating,timestamp,request", *lines]) + "\n")
    log = settings(raw, split={"min_history": 1}, columns={"request_id": "request"}, buckets=5)
    with pytest.raises(InputError, match=sentence):
        ingest(log, home)
    assert not home.events.exists()
    assert not list(home.events.parent.glob(".*"))


def test_rows_that_a_dead_task_has_left_are_not_read(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each share of the log is written twice, first by a task that ends before it has renamed what it wrote."""
    write_log(home.home / "log")
    log, scatter = settings("log", split=GLOBAL), buckets._scatter
    whole = made_in(1, log, home)
    died = []

    def twice(share: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", lambda *_: died.append(share.number))
            scatter(share)
        scatter(share)

    monkeypatch.setattr(buckets, "_scatter", twice)
    assert made_in(3, log, home) == whole
    assert sorted(died) == [0, 1, 2]


def test_buckets_are_runs_of_slots_with_about_the_same_rows() -> None:
    rows = np.random.default_rng(5).integers(0, 100, SLOTS)
    bucket = cut(rows, 64)
    share = np.bincount(bucket, weights=rows)
    assert (np.diff(bucket) >= 0).all()
    assert len(share) == 64
    assert abs(share - rows.sum() / 64).max() < 100  # a slot's
    rows[1000] = 10 * rows.sum()
    share = np.bincount(cut(rows, 8), weights=rows)
    assert (np.sort(share)[::-1][1:] < rows.sum() / 8).all()  # beside a heavy slot nothing is heavy


def test_a_user_with_most_of_the_rows_is_said(home: Paths, caplog: pytest.LogCaptureFixture) -> None:
    raw = home.home / "log.csv"
    lines = [f"{'heavy' if row % 4 else f'u{row}'},{row},3,{row}" for row in range(400)]
    raw.write_text("\n".join(["user_id,item_id,rating,timestamp", *lines]) + "\n")
    with caplog.at_level(logging.WARNING):
        ingest(settings(raw, buckets=2), home)
        assert not caplog.records
        ingest(settings(raw, buckets=8), home)
    assert "user 'heavy' has 300 of the log's 400 rows" in caplog.text
    assert rows(home, "count(*)", "WHERE user_id = 'heavy'") == [(300,)]


def test_the_slot_of_a_user_is_the_md5_of_its_id() -> None:
    import duckdb

    from dti_pipeline.events.database import run_script

    with duckdb.connect() as connection:
        run_script(connection, "slot")
        for user in ("1", "u1", "Zoë"):
            (slot,) = connection.execute("SELECT slot($1)", [user]).fetchone() or ()
            assert slot == int(hashlib.md5(user.encode()).hexdigest()[:3], 16)
