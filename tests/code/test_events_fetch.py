"""Fetching, against a server on this machine: whole, resumed, refused, changed, corrupt and hostile."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import stat
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.events import download as downloading
from dti_pipeline.events import fetch as fetching
from dti_pipeline.events.fetch import fetch
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.unpack import unpack
from dti_pipeline.paths import Paths


@dataclass
class Server:
    """What is served, and what was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    tags: bool = True
    break_off: int | None = None  # bytes after which the connection is cut
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            body = state.files.get(self.path.lstrip("/"))
            if body is None:
                self.send_error(404)
                return
            tag = f'"{hashlib.md5(body).hexdigest()}"'
            start = 0
            if wanted and state.ranges and self.headers.get("If-Range", tag) == tag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if state.tags:
                self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : None if state.break_off is None else start + state.break_off])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


RATINGS = "".join(
    f"{user}::{item}::{1 + (user * item) % 5}::{1000 + item}\n" for user in range(9) for item in range(99)
)
ML_1M = zipped({"ml-1m/ratings.dat": RATINGS.encode(), "ml-1m/movies.dat": b"1::One (1999)::Drama\n"})


@pytest.fixture(autouse=True)
def pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published checksum of the archive that this server has; no proxy stands between."""
    monkeypatch.setenv("no_proxy", "*")
    collection = fetching.COLLECTIONS["movielens-1m"]
    pinned = fetching.Collection(
        collection.base_url, collection.files, collection.terms, collection.source, hashlib.md5(ML_1M).hexdigest()
    )
    monkeypatch.setitem(fetching.COLLECTIONS, "movielens-1m", pinned)


def leftovers(home: Paths) -> list[str]:
    hidden = [path for path in home.raw.iterdir() if path.name.startswith(".") and path.suffix != ".lock"]
    return [path.name for path in hidden if any(path.iterdir())]


def test_a_fetched_log_ingests(home: Paths, server: Server) -> None:
    server.files["ml-1m.zip"] = ML_1M
    said: list[str] = []
    heard: list[tuple[int, int | None]] = []
    report = fetch(
        "movielens-1m", home, base_url=server.url + "/", say=said.append, progress=lambda *at: heard.append(at)
    )
    assert report.fetched
    assert said == [fetching.GROUPLENS_TERMS]
    assert heard[-1] == (len(ML_1M), len(ML_1M))
    assert report.files["ml-1m.zip"].md5 == hashlib.md5(ML_1M).hexdigest()
    assert leftovers(home) == []
    config = from_plain(Config, {"events": {"source": report.source, "path": report.path}})
    assert ingest(config, home).kept == 9 * 99


def test_terms_are_shown_once_and_what_is_there_is_not_fetched_again(home: Paths, server: Server) -> None:
    said: list[str] = []
    with pytest.raises(InputError):
        fetch("movielens-1m", home, base_url=server.url, say=said.append)
    server.files["ml-1m.zip"] = ML_1M
    fetch("movielens-1m", home, base_url=server.url, say=said.append)
    again = fetch("movielens-1m", home, base_url=server.url, say=said.append)
    assert said == [fetching.GROUPLENS_TERMS]
    assert not again.fetched
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("tags", "name"), [(True, "movielens-1m"), (False, "movielens-1m"), (True, "movielens-latest-small")]
)
def test_a_broken_download_goes_on_where_it_stopped(home: Paths, server: Server, tags: bool, name: str) -> None:
    file = fetching.COLLECTIONS[name].files[0]
    server.files[file], server.tags, server.break_off = ML_1M, tags, 100
    with pytest.raises(InputError, match=rf"broke off after 100 of {len(ML_1M)} bytes: run it again"):
        fetch(name, home, base_url=server.url)
    assert not (home.raw / name).exists()
    server.break_off = None
    fetch(name, home, base_url=server.url)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100-"]
    assert (home.raw / name / "ratings.dat").read_text() == RATINGS


def test_a_server_without_ranges_sends_it_whole(home: Paths, server: Server) -> None:
    server.files["ml-1m.zip"], server.ranges, server.break_off = ML_1M, False, 100
    with pytest.raises(InputError, match="broke off"):
        fetch("movielens-1m", home, base_url=server.url)
    server.break_off = None
    fetch("movielens-1m", home, base_url=server.url)
    assert (home.raw / "movielens-1m" / "ratings.dat").read_text() == RATINGS


def test_a_file_that_changed_meanwhile_is_not_mixed(home: Paths, server: Server) -> None:
    server.files["ml-latest-small.zip"], server.break_off = b"x" * 1000, 100
    with pytest.raises(InputError, match="broke off"):
        fetch("movielens-latest-small", home, base_url=server.url)
    server.files["ml-latest-small.zip"], server.break_off = ML_1M, None
    fetch("movielens-latest-small", home, base_url=server.url)
    assert (home.raw / "movielens-latest-small" / "ratings.dat").read_text() == RATINGS


def test_a_part_that_nothing_vouches_for_is_not_gone_on_with(home: Paths, server: Server) -> None:
    server.files["ml-latest-small.zip"], server.break_off, server.tags = b"x" * 1000, 100, False
    with pytest.raises(InputError, match="broke off"):
        fetch("movielens-latest-small", home, base_url=server.url)
    server.files["ml-latest-small.zip"], server.break_off = ML_1M, None
    fetch("movielens-latest-small", home, base_url=server.url)
    assert server.asked[-1][1] is None


def test_a_part_that_is_whole_already_is_fetched_anew(home: Paths, server: Server) -> None:
    server.files["ml-1m.zip"] = ML_1M
    part = home.raw / ".downloads" / "movielens-1m" / "ml-1m.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(ML_1M)
    assert fetch("movielens-1m", home, base_url=server.url).fetched


def test_a_wrong_checksum_is_refused_and_the_next_try_starts_anew(home: Paths, server: Server) -> None:
    server.files["ml-1m.zip"] = zipped({"ml-1m/ratings.dat": b"1::1::5::1\n"})
    with pytest.raises(InputError, match=r"has MD5 \w{32}, not the published \w{32}: what came was removed"):
        fetch("movielens-1m", home, base_url=server.url)
    assert not (home.raw / "movielens-1m").exists()
    server.files["ml-1m.zip"] = ML_1M
    fetch("movielens-1m", home, base_url=server.url)
    assert server.asked[-1][1] is None


def test_a_log_without_published_checksum_is_compared_with_what_came_before(home: Paths, server: Server) -> None:
    said: list[str] = []
    for content in (b"a", b"a", b"b"):
        server.files["ml-latest-small.zip"] = zipped({"ml/ratings.csv": content})
        fetch("movielens-latest-small", home, base_url=server.url, say=said.append)
        folder = home.raw / "movielens-latest-small"
        (folder / "ratings.csv").unlink()
        folder.rmdir()
    assert said[0] == fetching.GROUPLENS_TERMS
    assert [line.split(":")[0] for line in said[1:]] == ["ml-latest-small.zip has changed since it was last fetched"]


def test_a_refusal_names_the_address(home: Paths, server: Server) -> None:
    with pytest.raises(InputError, match=rf"{server.url}/ml-1m.zip answers 404 Not Found"):
        fetch("movielens-1m", home, base_url=server.url)


def test_no_server_at_all(home: Paths) -> None:
    with pytest.raises(InputError, match=r"could not be fetched .* run it again to go on"):
        fetch("movielens-1m", home, base_url="http://127.0.0.1:9")


def test_a_server_that_falls_silent(home: Paths, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(downloading, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(InputError, match="could not be fetched"):
        fetch("movielens-1m", home, base_url=f"http://127.0.0.1:{deaf.getsockname()[1]}")


def test_amazon_takes_reviews_and_titles_of_a_category(home: Paths, server: Server) -> None:
    review = {"user_id": "A", "parent_asin": "B0", "rating": 5.0, "timestamp": 1600000000000}
    reviews = "".join(json.dumps(review | {"timestamp": 1600000000000 + i * 1000}) + "\n" for i in range(20))
    server.files["review_categories/All_Beauty.jsonl.gz"] = gzip.compress(reviews.encode())
    server.break_off = 10**9
    with pytest.raises(InputError, match=r"meta_All_Beauty.jsonl.gz answers 404"):
        fetch("amazon", home, category="All_Beauty", base_url=server.url)
    server.files["meta_categories/meta_All_Beauty.jsonl.gz"] = gzip.compress(
        b'{"parent_asin": "B0", "title": "Soap"}\n'
    )
    report = fetch("amazon", home, category="All_Beauty", base_url=server.url)
    assert [path for path, _ in server.asked].count("/review_categories/All_Beauty.jsonl.gz") == 1  # kept meanwhile
    config = from_plain(Config, {"events": {"source": "amazon", "path": report.path}})
    found = ingest(config, home)
    assert (found.kept, found.untitled) == (20, 0)


def test_a_page_instead_of_a_gzip_file(home: Paths, server: Server) -> None:
    for file in ("review_categories/All_Beauty.jsonl.gz", "meta_categories/meta_All_Beauty.jsonl.gz"):
        server.files[file] = b"<html>sorry</html>"
    with pytest.raises(InputError, match="is not a gzip file"):
        fetch("amazon", home, category="All_Beauty", base_url=server.url)
    assert leftovers(home) == []


@pytest.mark.parametrize(
    ("name", "category", "sentence"),
    [
        ("movielens1m", None, "unknown log 'movielens1m': did you mean movielens-1m?"),
        ("netflix-prize", None, "unknown log 'netflix-prize': use one of movielens-1m"),
        ("amazon", None, "amazon needs a category: use one of All_Beauty"),
        ("amazon", "All_Beuty", "amazon has no category 'All_Beuty': did you mean All_Beauty?"),
        ("amazon", "../../x", "amazon has no category '../../x'"),
        ("movielens-1m", "All_Beauty", "movielens-1m has no categories"),
    ],
)
def test_names_that_are_not_known(home: Paths, name: str, category: str | None, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        fetch(name, home, category=category)
    assert str(caught.value).startswith(sentence)
    assert not home.raw.exists()


# Archives.


@pytest.mark.parametrize("cut", [0, 1, 50, -30, -1])
def test_a_corrupt_zip_is_refused_and_the_next_try_starts_anew(home: Paths, server: Server, cut: int) -> None:
    server.files["ml-latest-small.zip"] = ML_1M[:cut]
    with pytest.raises(InputError, match="is not a whole zip archive"):
        fetch("movielens-latest-small", home, base_url=server.url)
    assert not (home.raw / "movielens-latest-small").exists()
    assert leftovers(home) == []
    server.files["ml-latest-small.zip"] = ML_1M
    fetch("movielens-latest-small", home, base_url=server.url)


def test_a_zip_with_any_byte_changed_unpacks_as_it_was_or_is_refused(home: Paths) -> None:
    path = home.home / "log.zip"
    refused = 0
    for place in range(0, len(ML_1M), 7):
        broken = bytearray(ML_1M)
        broken[place] ^= 0xFF
        path.write_bytes(broken)
        folder = home.home / f"at-{place}"
        try:
            unpack(path, folder)
        except InputError:
            refused += 1
            continue
        assert RATINGS.encode() in [member.read_bytes() for member in folder.rglob("*") if member.is_file()]
    assert refused > 0


@pytest.mark.parametrize("name", ["../evil", "ml/../../evil", "/evil", "ml\\..\\..\\evil", "C:/evil", "c:\\evil"])
def test_a_member_that_climbs_out_is_refused(home: Paths, name: str) -> None:
    path = home.home / "log.zip"
    path.write_bytes(zipped({"ml/ratings.dat": b"1::1::1", name: b"evil"}))
    with pytest.raises(InputError, match="has a member that leaves its folder"):
        unpack(path, home.home / "out")
    assert not list(home.home.rglob("*evil*"))


def test_a_member_that_is_a_link_is_refused(home: Paths) -> None:
    link = zipfile.ZipInfo("ml/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = home.home / "log.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="has a member that is a link"):
        unpack(path, home.home / "out")


def test_an_archive_that_swells_is_refused(home: Paths) -> None:
    path = home.home / "log.zip"
    path.write_bytes(zipped({"a": b"0" * 1000, "b": b"0" * 1000}))
    assert unpack(path, home.home / "fits", max_bytes=2000) == ["a", "b"]
    with pytest.raises(InputError, match="unpacks to more than 1999 bytes"):
        unpack(path, home.home / "out", max_bytes=1999)


def test_only_one_folder_that_holds_everything_is_taken_off(home: Paths) -> None:
    path = home.home / "log.zip"
    path.write_bytes(zipped({"ml/a": b"", "ml/sub/b": b""}))
    assert unpack(path, home.home / "one") == ["a", "sub/b"]
    path.write_bytes(zipped({"ml/a": b"", "other/b": b""}))
    assert unpack(path, home.home / "two") == ["ml/a", "other/b"]
