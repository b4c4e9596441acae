"""Kinds of folders, catalogues, parameters, requests and archives, see :mod:`tests.kinds`."""

from __future__ import annotations

import io
import os
import stat
import zipfile
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from dti_pipeline import artifacts
from dti_pipeline.config import Config, load
from dti_pipeline.errors import InputError
from dti_pipeline.events import unpack as archives
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.report import FileCounts, IngestReport
from dti_pipeline.packing import vocabulary
from dti_pipeline.packing.settings import TokensConfig
from dti_pipeline.paths import Paths
from dti_pipeline.serving.requests import LONGEST, parse_line
from tests.code.raw_logs import rows, settings
from tests.kinds import answer, checked, ids, kind, lines, ratings, read, refused, table, written

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


@kind("catalogue", "a title of more than 8 MiB", "row of the catalogue refused, counted")
def _(home: Paths) -> None:
    written(home, lines(*ratings()))
    written(home, "item_id,item_text\na,Alien\nb," + "x " * 4_500_000 + "\n", "items.csv")
    assert read(home, items_path=str(home.home / "items.csv")).catalogue.reasons == {"longer than 8 MiB": 1}


@kind("catalogue", "ISO-8859-1", "read")
def _(home: Paths) -> None:
    written(home, lines(*ratings()))
    written(home, "item_id,item_text\na,Amélie\n".encode("iso-8859-1"), "items.csv")
    read(home, items_path=str(home.home / "items.csv"))
    assert dict(rows(home, "item_id, item_text"))["a"] == "Amélie"


@kind("catalogue", "titles that look like special tokens, [SUM] or [PAD]", "text: none becomes one")
def _(home: Paths) -> None:
    titles = ["[SUM]", "[PAD] [YES] [NO]", "a [SUM] b"]
    tokenizer = vocabulary.tokenizer_of(TokensConfig(vocab_size=300), [*titles, "Heat"])
    special = set(vocabulary.special_tokens(tokenizer).values())
    tokens, _, _ = vocabulary.encode(tokenizer, titles, 99)
    assert not special & set(tokens.tolist())


# --- tables of users


@kind("users", "a row without an id, a broken row, an id twice", "counted by reason, kept aside")
def _(home: Paths) -> None:
    written(home, lines(*ratings()))
    written(home, "user_id,age\nu,30\nNULL,31\nv\nu,32\n1.2E+11,33\nw,34\n", "users.csv")
    there = settings(home.home / "log.csv", users_path=str(home.home / "users.csv"))
    assert ingest(there, home).user_table is None, "no column of theirs is asked for"
    report = ingest(replace(there, tokens=TokensConfig(user_template="{age}")), home)
    assert artifacts.read(home.events, "ingest", IngestReport).report == report
    assert report.user_table is not None
    assert report.user_table.files == {"users.csv": FileCounts(6, 3)}
    aside = duckdb.sql(f"SELECT line, raw FROM '{home.events}/user_quarantine.parquet'").fetchall()
    assert aside == [(3, "NULL,31"), (4, "v"), (6, "1.2E+11,33")]
    assert report.left_out() == [
        "of 6 rows of users 1 repeat a user, 3 quarantined: user id is a rounded number 1, user id missing 1,"
        " wrong number of fields 1"
    ]


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


def unloadable(home: Paths, text: str, says: str) -> None:
    home.params.write_text(text)
    with pytest.raises(InputError, match=says) as refusal:
        load(home.params)
    assert len(str(refusal.value)) < 600


@kind("params.yaml", "brackets nested without end; anchors that grow without end", "refused in one sentence")
def _(home: Paths) -> None:
    unloadable(home, "[" * 5000, "nested too deep")
    grown = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    unloadable(home, grown, "unknown params key `a`")
    unloadable(home, f"training: {{seed: {grown.splitlines()[0][3:]}}}", "`training.seed` must be a whole number")


@kind("params.yaml", "a tag that would make an object, or a value its tag does not allow", "refused in one sentence")
def _(home: Paths) -> None:
    unloadable(home, "a: !!python/object/apply:os.system [id]", "line 1 is not YAML")
    for value in ("!!timestamp x", "!!bool x", "2020-13-45", "!!int x"):
        unloadable(home, f"training: {{seed: {value}}}", "a value that cannot be read|is not YAML")


@kind("params.yaml", "a value of another type or beyond its range; nan; 5,000 digits", "refused, key and range named")
def _(home: Paths) -> None:
    unloadable(home, "training: {seed: many}", "`training.seed` must be a whole number")
    unloadable(home, "training: {epochs: .nan}", "`training.epochs` must be a finite number")
    unloadable(home, "training: {epochs: -1}", "`training.epochs` must be 0 or more")
    unloadable(home, f"training: {{seed: 0x{'f' * 5000}}}", "`training.seed` must be a whole number of 64 bits")


@kind("params.yaml", "a key or a section that there is not", "refused; a near one is named")
def _(home: Paths) -> None:
    unloadable(home, "training: {sed: 1}", "unknown params key `training.sed`: did you mean `seed`")
    unloadable(home, "trainig: {}", "unknown params key `trainig`: did you mean `training`")


# --- requests


@kind("request", "a line of more than 64 MiB", "an error for the line")
def _(home: Paths) -> None:
    answer(b"x" * (LONGEST + 1), "line 1 is longer than 64 MiB")


@kind("request", "a key that there is not; history or candidates left out", "an error for the line, key named")
def _(home: Paths) -> None:
    answer('{"history": [], "candidates": [], "model": 1}', "key model is not known")
    answer('{"history": []}', "key candidates is missing")
    answer("[]", "must be an object")


@kind("request", "a label that is not 0, 1 or null; times that go back", "an error for the line, key named")
def _(home: Paths) -> None:
    for label in ("0.5", '"1"', "2", "[]"):
        answer(f'{{"history": [{{"item_id": "1", "label": {label}}}], "candidates": []}}', r"\.label must be 0 or 1")
    back = ", ".join(f'{{"item_id": "1", "label": 1, "timestamp": {time}}}' for time in (5, 4))
    answer(f'{{"history": [{back}], "candidates": []}}', r"history\[1\]\.timestamp is 4, before")


@kind("request", "no candidates", "no probabilities")
def _(home: Paths) -> None:
    assert parse_line(b'{"history": [], "candidates": []}', "line 1").candidates == ()


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


# --- archives that `dti fetch` unpacks


def unpacked(home: Paths, says: str, *members: tuple[str, int], **limits: int) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, kind_of_file in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = kind_of_file << 16
            opened.writestr(info, b"0" * 1000, zipfile.ZIP_DEFLATED)
    written(home, out.getvalue(), "a.zip")
    folder = home.home / "raw" / "log"
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(InputError, match=says):
        archives.unpack(home.home / "a.zip", folder, **limits)
    assert {path.name for path in home.home.iterdir()} == {"a.zip", "raw"}
    assert list(folder.iterdir()) == []


@kind("archive", "a member that is absolute, climbs out or is a link", "refused, member named")
def _(home: Paths) -> None:
    for name in ("/etc/x", "../x", "a/../../x", "C:/x", "..\\x"):
        unpacked(home, "leaves its folder", (name, stat.S_IFREG | 0o644))
    unpacked(home, "is a link", ("x", stat.S_IFLNK | 0o777))


@kind("archive", "no files, more than 10,000, or more than 4 GiB in all", "refused before anything is unpacked")
def _(home: Paths) -> None:
    unpacked(home, "has no files in it")
    unpacked(home, "has 10001 files, more than 10000", *((f"{n}", 0o644) for n in range(archives.MAX_MEMBERS + 1)))
    unpacked(home, "unpacks to more than 1500 bytes", ("a", 0o644), ("b", 0o644), max_bytes=1500)
