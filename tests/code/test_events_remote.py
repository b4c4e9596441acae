"""A log in an S3-compatible store: read as one that lies here, fetched once, resumed, refused in plain sentences."""

from __future__ import annotations

import gzip
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dti_pipeline import config
from dti_pipeline.address import Address
from dti_pipeline.cli import app
from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.events import remote
from dti_pipeline.events.ingest import ingest
from dti_pipeline.homes import doctor
from dti_pipeline.paths import Paths
from dti_pipeline.stores import s3
from dti_pipeline.stores.s3 import PIECE, Bucket, Object
from tests.code.raw_logs import HEADER, settings
from tests.objects import SECRET, Line, Store

ROWS = [(user, item, (user * item) % 5 + 1, item) for user in range(5) for item in range(9)]
LOG = f"{HEADER}\n" + "".join("u{},i{},{},{}\n".format(*row) for row in ROWS)
MOVIES = "userId,movieId,rating,timestamp\n" + "".join("{},{},{},{}\n".format(*row) for row in ROWS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Objects that were read, each with the byte from which on."""
    found = []
    pieces = Bucket.pieces

    def heard(bucket: Bucket, one: Object, start: int = 0) -> Iterator[bytes]:
        found.append((one.address.key, start))
        return pieces(bucket, one, start)

    monkeypatch.setattr(Bucket, "pieces", heard)
    return found


def made(home: Paths) -> list[bytes]:
    return [path.read_bytes() for path in sorted(home.events.glob("*.parquet"))]


def put(store: Store, folder: Path, below: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(f"{below}/{path.relative_to(folder)}", path.read_bytes())


def test_a_log_in_a_store_gives_the_bytes_of_the_same_log_here(store: Store, home: Paths) -> None:
    """A folder with names that addresses escape; a file whose titles lie beside it; titles by an address of their own.
    Hidden objects, empty ones that stand for a folder and what other programs left are as they are here."""
    table, rated = home.home / "täble", home.home / "rated"
    (table / "dt=2026-11-01").mkdir(parents=True)
    rated.mkdir()
    (table / "dt=2026-11-01" / "é %20 #1?.csv").write_text(LOG + "u1,i1,bad,9\n")
    (table / "b+c.csv.gz").write_bytes(gzip.compress(LOG.replace("\nu", "\nv").encode()))
    (table / ".hidden.csv").write_text("no table")
    (table / "_SUCCESS").write_text("")
    (rated / "ratings.csv").write_text(MOVIES)
    (rated / "movies.csv").write_text("movieId,title,genres\n" + "".join(f"{i},Tïtle {i},Drama\n" for i in range(9)))
    (rated / "titles.csv").write_text("item_id,item_text\n" + "".join(f"i{i},Title {i}\n" for i in range(9)))
    put(store, table, "my log/täble")
    put(store, rated, "rated")
    store.put("my log/täble/", b"")
    address = "s3://dti/my log/täble"
    for here, there in (
        (settings(table), settings(address)),
        (settings(rated / "ratings.csv", "movielens"), settings("s3://dti/rated/ratings.csv", "movielens")),
        (
            settings(table, items_path=str(rated / "titles.csv")),
            settings(address, items_path="s3://dti/rated/titles.csv"),
        ),
    ):
        report = ingest(here, home)
        local = made(home)
        assert ingest(there, home) == report
        assert made(home) == local


def test_what_is_here_is_not_fetched_again(store: Store, home: Paths, asked: list[tuple[str, int]]) -> None:
    """New, changed and damaged ones come, those that are gone go."""
    config = settings("s3://dti/log").events

    def fetched() -> list[str]:
        asked.clear()
        remote.bring(config, home)
        found = {path.name: path.read_bytes() for path in (home.remote / "dti/log").iterdir()}
        assert found == {key[4:]: store.get(key) for key in store.listed()}
        return sorted(key for key, _ in asked)

    for name in "abc":
        store.put(f"log/{name}", name.encode())
    assert fetched() == ["log/a", "log/b", "log/c"]
    assert fetched() == []
    store.put("log/a", b"A")  # of the same size
    store.put("log/d", b"d")
    store.delete("log/b")
    assert fetched() == ["log/a", "log/d"]
    (home.remote / "dti/log/c").write_bytes(b"x")
    (home.remote / "dti/log/left").write_bytes(b"x")
    with (home.remote / remote.RECORD).open("a") as record:
        record.write('{"address": "s3://dti/log/d", "etag')  # by a process that was killed
    assert fetched() == ["log/c"]
    assert not (home.remote / remote.PARTS).exists()


def test_a_folder_takes_the_place_of_an_object_and_back(store: Store, home: Paths) -> None:
    for there, gone in (("log/a", "none"), ("log/a/b/c", "log/a"), ("log/a", "log/a/b/c")):
        store.delete(gone)
        store.put(there, b"x")
        for address in ("s3://dti/log", f"s3://dti/{there}"):
            remote.bring(settings(address).events, home)
            files = [path for path in (home.remote / "dti").rglob("*") if path.is_file()]
            assert files == [home.remote / "dti" / there]


def test_a_connection_that_breaks_off_goes_on_where_it_was(
    store: Store, home: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(4 * PIECE)
    store.put("log/a", content)
    line = Line(store.url)
    line.most = 2 * PIECE
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.url)
    remote.bring(settings("s3://dti/log").events, home)
    assert (home.remote / "dti/log/a").read_bytes() == content
    assert line.most > len(content)  # it did break off
    assert line.passed < len(content) + PIECE + (1 << 18)  # and the first half did not come again
    store.put("log/a", content[::-1])
    line.most, line.cut = line.passed + 2 * PIECE, lambda: store.put("log/a", bytes(4 * PIECE))
    with pytest.raises(InputError, match=r"^s3://dti/log/a cannot be read: it changed while it was read: run"):
        remote.bring(settings("s3://dti/log").events, home)
    remote.bring(settings("s3://dti/log").events, home)
    assert (home.remote / "dti/log/a").read_bytes() == bytes(4 * PIECE)
    line.listener.close()


def test_what_was_interrupted_goes_on_from_its_last_byte(
    store: Store, home: Paths, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, int]]
) -> None:
    """Unless the object is another one by then. No more than a piece is in memory."""
    content = os.urandom(3 * PIECE + 1)
    store.put("log/a", content)
    config, pieces = settings("s3://dti/log/a").events, Bucket.pieces
    (found,) = remote.listed(config).values()
    assert [len(piece) for piece in pieces(Bucket("dti"), found)] == [PIECE, PIECE, PIECE, 1]

    def interrupted(bucket: Bucket, one: Object, start: int = 0) -> Iterator[bytes]:
        yield next(pieces(bucket, one, start))
        raise KeyboardInterrupt

    def interrupt() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "pieces", interrupted)
            with pytest.raises(KeyboardInterrupt):
                remote.bring(config, home)
        assert not (home.remote / "dti").exists()
        asked.clear()

    interrupt()
    interrupt()
    remote.bring(config, home)
    assert asked == [("log/a", 2 * PIECE)]
    assert (home.remote / "dti/log/a").read_bytes() == content
    (home.remote / "dti/log/a").unlink()
    (home.remote / "dti/log").rmdir()
    (home.remote / "dti").rmdir()
    interrupt()
    store.put("log/a", content[::-1])
    remote.bring(config, home)
    assert asked == [("log/a", 0)]
    assert (home.remote / "dti/log/a").read_bytes() == content[::-1]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["a/../b.csv"], "s3://dti/log/a/../b.csv cannot be copied: its key is no path of a file"),
        (["a//b.csv"], "s3://dti/log/a//b.csv cannot be copied: its key is no path of a file"),
        (["x" * 256], f"s3://dti/log/{'x' * 256} cannot be copied: its key is no path of a file"),
        (["a", "a/b"], "s3://dti/log/a is an object and a folder, which no copy can be: rename one"),
        (["_delta_log/0.json", "a.parquet"], "`events.path` names s3://dti/log, which is a Delta table: export its"),
        ([".a/b.csv"], "params key `events.path` names s3://dti/log, where there is no object"),
    ],
)  # fmt: skip
def test_objects_that_cannot_be_a_log_are_named_before_any_comes(
    store: Store, home: Paths, asked: list[tuple[str, int]], keys: list[str], says: str
) -> None:
    for key in keys:
        store.put(f"log/{key}", b"x")
    with pytest.raises(InputError) as raised:
        remote.bring(settings("s3://dti/log").events, home)
    assert says in str(raised.value)
    assert str(raised.value).count("params key") == 1
    assert not asked


@pytest.mark.parametrize(
    ("address", "environment", "says"),
    [
        ("s3://nobody/log", {}, "`events.path`: s3://nobody/log/ cannot be listed: there is no such bucket"),
        ("s3://dti/none", {}, "`events.path` names s3://dti/none, where there is no object"),
        ("s3://dti/log", {"AWS_ENDPOINT_URL": "http://me:a-secret@127.0.0.1:9"}, "Could not connect to the endpoint"),
        ("s3://dti/log", {"AWS_ENDPOINT_URL": "nowhere"}, "Invalid endpoint: nowhere (AWS_ENDPOINT_URL)"),
        ("s3://dti/log", {"AWS_ACCESS_KEY_ID": ""}, "there are no keys: set AWS_ACCESS_KEY_ID"),
        ("s3://dti/log", {"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found"),
        (f"s3://key:{SECRET}@dti/log", {}, "must read s3://bucket/key, not s3://***@dti/log; keys are read from the"),
        ("gs://dti/log", {}, "`events.path` must read s3://bucket/key, not gs://dti/log"),
        ("s3://dti/a/../b", {}, "`events.path` must read s3://bucket/key, not s3://dti/a/../b"),
    ],
)  # fmt: skip
def test_a_store_that_cannot_be_read_is_one_sentence_without_secrets(
    store: Store, home: Paths, monkeypatch: pytest.MonkeyPatch, address: str, environment: dict[str, str], says: str
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    done = CliRunner().invoke(app, ["ingest", "--set", "events.source=table", "--set", f"events.path={address}"])
    assert done.exit_code == 2
    assert says in done.output
    assert done.output.startswith("error: params key `events.path`")
    assert done.output.count("\n") == 1
    assert "a-secret" not in done.output


def test_wrong_keys_and_a_missing_library_are_said(store: Store, home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_keys_after(requests: str) -> None:
        plain = {"Content-Type": "text/plain"}
        asked = urllib.request.Request(f"{store.url}/moto-api/reset-auth", requests.encode(), plain)
        urllib.request.urlopen(asked).close()

    check_keys_after("0")
    try:
        with pytest.raises(InputError, match=r"^params key `events.path`: .* the store refuses it with these keys$"):
            remote.bring(settings("s3://dti/log").events, home)
        with pytest.raises(InputError, match=r"listed: the store does not know the access key$"):
            remote.bring(settings("s3://dti/log/").events, home)
    finally:
        check_keys_after("inf")
    monkeypatch.setattr(s3.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"s3://dti needs boto3: pip install dti-pipeline\[s3\]"):
        remote.bring(settings("s3://dti/log").events, home)


def test_a_synthetic_log_is_not_in_a_store() -> None:
    with pytest.raises(InputError, match=r"`events.path` must be a path for `events.source: synthetic`"):
        from_plain(Config, {"events": {"path": "s3://dti/log"}})


def test_the_copy_of_another_home_is_left_alone(store: Store, home: Paths, asked: list[tuple[str, int]]) -> None:
    """As `dti reproduce` has it: a link to what a run read."""
    store.put("log/a", b"new")
    (home.home / "read").mkdir()
    (home.home / "read/a").write_bytes(b"old")
    (home.remote / "dti").mkdir(parents=True)
    (home.remote / "dti/log").symlink_to(home.home / "read")
    remote.bring(settings("s3://dti/log").events, home)
    assert (home.home / "read/a").read_bytes() == b"old"
    assert not asked


def test_a_home_is_proposed_for_a_log_in_a_store(store: Store, home: Paths, asked: list[tuple[str, int]]) -> None:
    store.put("new log/ratings.csv", LOG.encode())
    store.put("new log/items.csv", b"item_id,title\n" + b"".join(b"i%d,Title %d\n" % (i, i) for i in range(9)))
    done = CliRunner().invoke(app, ["init", str(home.home), "--from", "s3://dti/new log"])
    assert done.exit_code == 0, done.output
    made = config.load(home.params).events
    assert (made.path, made.items_path) == ("s3://dti/new log/ratings.csv", "s3://dti/new log/items.csv")
    asked.clear()
    remote.bring(made, home)
    assert not asked


def test_the_sensor_the_log_s_asset_and_the_doctor_read_a_store(
    store: Store, home: Paths, monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, int]]
) -> None:
    import dagster as dg

    from dti_pipeline.defs import assets
    from dti_pipeline.defs.automation import new_log_files
    from dti_pipeline.defs.resources import Work

    home.params.write_text(json.dumps({"events": {"source": "table", "path": "s3://dti/log"}}))
    context = dg.build_sensor_context()

    config = settings("s3://dti/log")
    skipped = new_log_files(context)
    assert isinstance(skipped, dg.SkipReason)
    assert "where there is no object" in str(skipped.skip_message)
    assert doctor._log(config, home).state == "stop"
    store.put("log/a.csv", b"12345")
    assert isinstance(new_log_files(context), dg.SkipReason)
    first = new_log_files(context)
    assert isinstance(first, dg.RunRequest)
    store.put("log/a.csv", b"12346")
    assert isinstance(new_log_files(context), dg.SkipReason)
    second = new_log_files(context)
    assert isinstance(second, dg.RunRequest)
    assert second.run_key != first.run_key
    assert doctor._log(config, home).text == "s3://dti/log: 1 objects, 0.0 GB"
    assert not asked
    report = assets._found(Work(config, home, ()))
    assert (report.path, report.files, report.bytes) == ("s3://dti/log", 1, 5)
    assert Address("dti", "log/a.csv").key in [key for key, _ in asked]
