"""Published folders to a store and back: the same bytes, whole or not at all, resumed, nobody's work overwritten."""

from __future__ import annotations

import contextvars
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dti_pipeline import artifacts, locks
from dti_pipeline.address import Address
from dti_pipeline.clean import clean
from dti_pipeline.cli import app
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.stores import s3
from dti_pipeline.stores.download import download
from dti_pipeline.stores.s3 import PIECE, Bucket, Heard, Object
from dti_pipeline.stores.upload import upload
from tests.objects import Store

PLACE = Address("dti", "my project/é")
MODEL = {"weights.bin": os.urandom(2 * PIECE), "sub dir/ü 100%25.json": b"{}", "empty": b""}


@pytest.fixture
def ours(tmp_path: Path) -> Paths:
    """A home with a model and the comparison."""
    paths = Paths(tmp_path / "ours")
    publish(paths.model("dti"), MODEL)
    publish(paths.comparison, {f"comparison.{kind}": kind.encode() for kind in ("json", "md", "html")})
    return paths


@pytest.fixture
def theirs(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path / "theirs")
    paths.home.mkdir()
    return paths


def publish(folder: Path, files: dict[str, bytes]) -> None:
    with artifacts.publish(folder, "train") as draft:
        for name, content in files.items():
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            (draft.path / name).write_bytes(content)
        draft.report = {}


def key(name: str) -> str:
    return f"{PLACE.key}/{name}"


def before(number: int, what: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Do something before the write of that number; the names of the objects that are written."""
    write, written = Bucket.write, list[str]()

    def heard(bucket: Bucket, file: Path, address: Address, md5: str, heard: Heard) -> None:
        written.append(address.name)
        if len(written) == number:
            what()
        write(bucket, file, address, md5, heard)

    monkeypatch.setattr(Bucket, "write", heard)
    monkeypatch.setattr("dti_pipeline.stores.transfer.THREADS", 1)  # in order
    return written


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_was_uploaded_is_downloaded_to_the_byte(store: Store, ours: Paths, theirs: Paths) -> None:
    """By the commands. A second time nothing moves, and one of the folders is enough."""

    def run(paths: Paths, *words: str) -> dict[str, int]:
        done = CliRunner().invoke(app, [*words, "--json"], env={"DTI_HOME": str(paths.home)})
        assert done.exit_code == 0, done.output
        folders = json.loads(done.stdout.splitlines()[-1])["folders"]
        return {name: folder["moved"] for name, folder in folders.items()}

    assert run(ours, "upload", str(PLACE)) == {"models/dti": 3, "reports/comparison": 3}
    assert run(ours, "upload", str(PLACE)) == {"models/dti": 0, "reports/comparison": 0}
    assert store.get(key("models/dti/sub dir/ü 100%25.json")) == b"{}"  # as it is called here
    found = store.client.head_object(Bucket="dti", Key=key("reports/comparison/comparison.html"))
    assert found["ContentType"] == "text/html"
    assert run(theirs, "download", f"{PLACE}/", "models/") == {"models/dti": 3}
    assert not theirs.comparison.exists()
    assert run(theirs, "download", str(PLACE)) == {"models/dti": 0, "reports/comparison": 3}
    for folder in ("models/dti", "reports/comparison"):
        assert artifacts.folder_digest(theirs.home / folder) == artifacts.folder_digest(ours.home / folder)
    assert theirs.comparison_file("md").read_text() == "md"
    assert not list(theirs.home.rglob("*download*"))


def test_a_folder_that_changed_takes_the_place_of_the_old_one(
    store: Store, ours: Paths, theirs: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the store: what others keep beside it stays. In a home only where that is asked for."""
    upload(ours, PLACE)
    download(theirs, PLACE)
    store.put(key("models/dti/notes.txt"), b"of a person")
    publish(ours.model("dti"), {"weights.bin": MODEL["weights.bin"], "new": b"n"})
    written = before(0, interrupt, monkeypatch)
    upload(ours, PLACE)
    assert written == ["new"]
    there = {"manifest.json", "new", "notes.txt", "weights.bin"}
    assert {name.rpartition("/")[2] for name in store.listed(key("models/"))} == there
    old = artifacts.folder_digest(theirs.model("dti"))
    with pytest.raises(InputError, match=r"^the home has another \S+/theirs/models/dti than the store: --replace puts"):
        download(theirs, PLACE)
    assert artifacts.folder_digest(theirs.model("dti")) == old
    download(theirs, PLACE, replace=True)
    assert artifacts.folder_digest(theirs.model("dti")) == artifacts.folder_digest(ours.model("dti"))
    (theirs.model("dti") / "new").write_bytes(b"x")  # damaged, and no work of anybody's
    download(theirs, PLACE)
    assert artifacts.folder_digest(theirs.model("dti")) == artifacts.folder_digest(ours.model("dti"))


def test_half_an_upload_is_no_folder_and_goes_on(
    store: Store, ours: Paths, theirs: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another one was there: nobody gets the new weights with the old manifest."""
    for _ in ("nothing there", "another one there"):
        with monkeypatch.context() as patch:
            assert before(3, interrupt, patch) == []
            with pytest.raises(KeyboardInterrupt):
                upload(ours, PLACE, ["models"])
        with pytest.raises(InputError, match=r"^s3://dti/my project/é has no published folder below data, models"):
            download(theirs, PLACE)
        with monkeypatch.context() as patch:
            written = before(0, interrupt, patch)
            upload(ours, PLACE, ["models"])
            assert len(written) == 1
        assert download(theirs, PLACE, replace=True).folders["models/dti"].files == 3
        publish(ours.model("dti"), {name: content[::-1] + b"x" for name, content in MODEL.items()})


def test_a_large_file_goes_in_parts_and_an_end_leaves_none(
    store: Store, ours: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART", 5 << 20)  # the least that a store takes
    content, heard = bytes((20 << 20) + 1), list[int]()
    file = ours.home / "large"
    file.write_bytes(content)
    Bucket("dti").write(file, PLACE / "large", "digest", heard.append)
    assert store.client.head_object(Bucket="dti", Key=key("large"))["ETag"].endswith('-5"')
    assert sum(heard) == len(content)
    assert store.get(key("large")) == content

    def stop(count: int) -> None:
        raise RuntimeError("somebody has pressed Ctrl-C")

    with pytest.raises(RuntimeError, match=r"Ctrl-C"):
        Bucket("dti").write(file, PLACE / "other", "digest", stop)
    assert store.listed(key("other")) == []
    assert store.client.list_multipart_uploads(Bucket="dti").get("Uploads") is None


def test_a_damaged_object_is_found_and_the_rest_need_not_come_again(
    store: Store, ours: Paths, theirs: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(ours, PLACE)
    whole = store.get(key("models/dti/weights.bin"))
    store.put(key("models/dti/weights.bin"), whole[:-1] + b"?")
    damaged = r"^s3://dti/my project/é/models/dti/weights.bin is not what its manifest says: it is damaged, or an"
    with pytest.raises(InputError, match=damaged):
        download(theirs, PLACE)
    assert not theirs.model("dti").exists()
    upload(ours, PLACE)  # by its digest it is another one, and goes again
    read, pieces = list[str](), Bucket.pieces

    def heard(bucket: Bucket, one: Object, start: int = 0) -> Iterator[bytes]:
        read.append(one.address.name)
        return pieces(bucket, one, start)

    monkeypatch.setattr(Bucket, "pieces", heard)
    download(theirs, PLACE, ["models"])
    assert sorted(set(read)) == ["manifest.json", "weights.bin"]
    assert artifacts.folder_digest(theirs.model("dti")) == artifacts.folder_digest(ours.model("dti"))


def test_an_interrupted_download_leaves_what_was_there_and_goes_on(
    store: Store, ours: Paths, theirs: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(theirs.model("dti"), {"old": b"o"})
    upload(ours, PLACE, ["models"])
    pieces, starts = Bucket.pieces, list[int]()

    def interrupted(bucket: Bucket, one: Object, start: int = 0) -> Iterator[bytes]:
        for piece in pieces(bucket, one, start):
            yield piece
            if one.size > PIECE:
                raise KeyboardInterrupt

    def heard(bucket: Bucket, one: Object, start: int = 0) -> Iterator[bytes]:
        starts.extend([start] if one.size > PIECE else [])
        return pieces(bucket, one, start)

    for _ in ("cleaned", "gone on"):
        with monkeypatch.context() as patch:
            patch.setattr(Bucket, "pieces", interrupted)
            with pytest.raises(KeyboardInterrupt):
                download(theirs, PLACE, replace=True)
        assert artifacts.read(theirs.model("dti"), "train").files.keys() == {"old"}
        if not starts:
            shutil.copytree(theirs.home, theirs.home / "copy")
            assert "models/.dti.download" in clean(Paths(theirs.home / "copy"))
            starts.append(-1)
    monkeypatch.setattr(Bucket, "pieces", heard)
    download(theirs, PLACE, replace=True)
    assert starts == [-1]  # both pieces were there
    assert artifacts.folder_digest(theirs.model("dti")) == artifacts.folder_digest(ours.model("dti"))


def test_of_two_uploads_at_once_one_holds_and_the_other_is_told(
    store: Store, ours: Paths, theirs: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same folder both hold."""
    shutil.copytree(ours.home, theirs.home, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        before(2, lambda: upload(theirs, PLACE) and None, patch)
        upload(ours, PLACE)
    publish(theirs.model("dti"), {name: content[::-1] for name, content in MODEL.items()} | {"empty": b"not"})
    publish(ours.model("dti"), MODEL | {"sub dir/ü 100%25.json": b"[]"})
    with monkeypatch.context() as patch:
        before(1, lambda: upload(theirs, PLACE) and None, patch)
        with pytest.raises(InputError, match=r"é/models/dti/.+ was changed by another upload meanwhile: run"):
            upload(ours, PLACE)
    upload(ours, PLACE)
    third = Paths(theirs.home / "third")
    download(third, PLACE)
    assert artifacts.folder_digest(third.model("dti")) == artifacts.folder_digest(ours.model("dti"))


def test_what_changes_or_is_damaged_here_is_not_uploaded(
    store: Store, ours: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before(2, lambda: publish(ours.model("dti"), {"other": b"o"}), patch)  # by a program that knows no lock
        with pytest.raises(InputError, match=r"models/dti changed while it was uploaded: run the command again$"):
            upload(ours, PLACE, ["models/dti"])
    assert key("models/dti/manifest.json") not in store.listed()

    def make() -> None:
        with pytest.raises(InputError, match=r"uses \S+/models/dti: wait for it"):
            contextvars.Context().run(locks.hold([ours.model("dti")], wait=False).__enter__)

    with monkeypatch.context() as patch:
        before(1, make, patch)
        upload(ours, PLACE)
    (ours.model("dti") / "other").write_bytes(b"x")
    with pytest.raises(InputError, match=r"ours/models/dti/other is damaged: .* run `dti train` again$"):
        upload(ours, PLACE)


@pytest.mark.parametrize(
    ("changed", "resealed", "says"),
    [
        ({"files": {"x": "0" * 32}}, False, "models/dti/manifest.json is damaged: its content is not what was"),
        ({"files": {"../../x": "0" * 32}}, True, "models/dti lacks ../../x, which its manifest names: upload it"),
        ({"files": {"x": "0" * 32}}, True, "models/dti lacks x, which its manifest names: upload it again"),
        ({"schema_version": 9}, True, "models/dti/manifest.json has schema version 9, this version reads 1"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_is_refused(
    store: Store, ours: Paths, theirs: Paths, changed: dict[str, object], resealed: bool, says: str
) -> None:
    upload(ours, PLACE, ["models"])
    manifest = json.loads(store.get(key("models/dti/manifest.json"))) | changed
    content = artifacts.sealed(manifest) if resealed else manifest
    store.put(key("models/dti/manifest.json"), json.dumps(content).encode())
    with pytest.raises(InputError) as raised:
        download(theirs, PLACE)
    assert says in str(raised.value)
    assert str(raised.value).startswith("s3://dti/my project/")
    assert not any(path.is_file() and not path.name.endswith(".lock") for path in theirs.home.rglob("*"))


def test_a_wish_that_nothing_fulfils_names_what_is_there(store: Store, ours: Paths, theirs: Paths) -> None:
    upload(ours, PLACE)
    for move, where in ((upload, str(ours.home)), (download, str(PLACE))):
        with pytest.raises(InputError) as raised:
            move(ours, PLACE, ["models/sliding"])
        assert str(raised.value) == (
            f"{where} has nothing published at models/sliding: it has models/dti, reports/comparison"
        )
    with pytest.raises(InputError, match=r"theirs has no published folder below data, models, reports$"):
        upload(theirs, PLACE)
    for words in (["upload", "models/dti"], ["download", "gs://dti/x"]):
        done = CliRunner().invoke(app, words, env={"DTI_HOME": str(ours.home)})
        assert (done.exit_code, done.output) == (2, f"error: URL must read s3://bucket/key, not {words[1]}\n")
