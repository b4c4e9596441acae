"""What a stage reads is what was written, and what it publishes is of what it read."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dti_pipeline import artifacts
from dti_pipeline.artifacts import Inputs
from dti_pipeline.errors import InputError


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file, counted from its start."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def published(folder: Path, text: str = "content") -> Path:
    with artifacts.publish(folder, "pack", {"packing": {"context": 5}}) as draft:
        (draft.path / "more").mkdir()
        (draft.path / "plan.arrow").write_text(text)
        (draft.path / "more" / "words.txt").write_text(text * 2)
        draft.report = {"rows": 12, "note": "Größe"}
    return folder


def test_every_byte_of_an_output_counts(tmp_path: Path) -> None:
    """Each byte of the manifest, and of the files that it lists: a damaged one is named, whichever bit of it it is."""
    folder = published(tmp_path / "shards")
    assert artifacts.read(folder, "pack").report["rows"] == 12
    for path in [file for file in folder.rglob("*") if file.is_file()]:
        for bit in (8 * byte + byte % 8 for byte in range(path.stat().st_size)):
            flip(path, bit)
            with pytest.raises(InputError) as refused:
                artifacts.read(folder, "pack")
            assert str(path) in str(refused.value)
            assert "run `dti pack` again" in str(refused.value)
            flip(path, bit)
    artifacts.read(folder, "pack")


@pytest.mark.parametrize("name", ["plan.arrow", "more/words.txt"])
def test_a_file_that_is_missing_or_cut_is_named(tmp_path: Path, name: str) -> None:
    folder = published(tmp_path / "shards")
    (folder / name).write_text("cont")
    with pytest.raises(InputError, match=f"{name} is damaged"):
        artifacts.read(folder, "pack")
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        artifacts.read(folder, "pack")


def test_an_output_from_before_manifests_had_a_digest_is_read(tmp_path: Path) -> None:
    folder = published(tmp_path / "shards")
    content = artifacts.read_sealed(folder / artifacts.MANIFEST, set())
    del content[artifacts.SEAL]
    artifacts.write_json(folder / artifacts.MANIFEST, content)
    assert artifacts.read(folder, "pack").report["rows"] == 12
    artifacts.write_json(folder / artifacts.MANIFEST, content | {"sean": "the key of the digest, damaged"})
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        artifacts.read(folder, "pack")


def test_an_input_that_changes_while_it_is_read_leaves_the_old_output(tmp_path: Path) -> None:
    tokens, target = published(tmp_path / "tokens"), published(tmp_path / "model", "the old model")
    before = artifacts.folder_digest(target)
    read_from = Inputs.published(tokens=(tokens, "tokenize"))
    published(tokens, "another log")
    with (
        pytest.raises(InputError, match="tokens changed while it was read, so nothing was published"),
        artifacts.publish(target, "train", {}, read_from) as draft,
    ):
        (draft.path / "weights").write_text("of the log before")
    assert artifacts.folder_digest(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tokens"]


def test_a_file_is_read_once_and_again_when_it_was_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "SETTLED_SECONDS", 0.0)
    path = tmp_path / "large"
    path.write_text("one")
    first, read = artifacts.file_digest(path), []
    digest = artifacts.hashlib.file_digest
    monkeypatch.setattr(artifacts.hashlib, "file_digest", lambda *how: read.append(1) or digest(*how))
    assert artifacts.file_digest(path) == first
    assert not read
    facts = path.stat()
    path.write_text("two")
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # a copy that keeps its times
    assert artifacts.file_digest(path) != first


KILLED = """
import os, signal, sys
from pathlib import Path
from dti_pipeline import artifacts
target, point = Path(sys.argv[1]), sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if point == "between the renames":
    artifacts._exchange = lambda *_: False
    rename = Path.rename
    Path.rename = lambda self, to: die() if to == target else rename(self, to)
with artifacts.publish(target, "pack") as draft:
    (draft.path / "plan.arrow").write_text("half")
    if point == "while it writes":
        die()
"""


@pytest.mark.parametrize("point", ["while it writes", "between the renames"])
def test_what_a_killed_publication_leaves_is_gone_at_the_next_start(tmp_path: Path, point: str) -> None:
    target = published(tmp_path / "shards", "old")
    before = artifacts.folder_digest(target)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(target), point], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.iterdir() if path != target], "the killed process has left something"
    with artifacts.publish(tmp_path / "other", "pack"):
        pass  # another output's start is not for this one's
    assert len(list(tmp_path.iterdir())) == 3
    artifacts.recover(target)
    assert artifacts.folder_digest(target) == before, "the output from before is there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "shards"]


def test_the_draft_of_a_process_at_work_stays(tmp_path: Path) -> None:
    target = tmp_path / "shards"
    with artifacts.publish(target, "pack") as first:
        (first.path / "plan.arrow").write_text("first")
        with artifacts.publish(target, "pack") as second:
            (second.path / "plan.arrow").write_text("second")
        assert (first.path / "plan.arrow").read_text() == "first"
    assert (target / "plan.arrow").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_the_target_is_never_missing_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old output is exchanged for the new one: no rename takes it away first."""
    target = published(tmp_path / "shards", "old")
    renamed: list[Path] = []
    monkeypatch.setattr(Path, "rename", lambda self, to: renamed.append(self))
    published(target, "new")
    assert (target / "plan.arrow").read_text() == "new"
    assert renamed == []


def test_files_aside_of_dead_processes_go(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left, alive = tmp_path / f".report.md.draft-{gone.pid}", tmp_path / f".report.md.draft-{os.getppid()}"
    left.write_text("half")
    alive.write_text("half")
    artifacts.write_text(tmp_path / "report.md", "whole")
    assert not left.exists()
    assert alive.exists()


def test_a_trusted_output_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digests are those of its manifest, until a file is written to."""
    folder = published(tmp_path / "shards")
    expected = artifacts.read(folder, "pack"), artifacts.folder_digest(folder)
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(artifacts, "_known", {})
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, how: read.append(Path(file.name).name) or digest(file, how)
    )
    artifacts.trust(folder, "pack")
    assert (artifacts.read(folder, "pack"), artifacts.folder_digest(folder)) == expected
    assert read == ["manifest.json"]
    (folder / "plan.arrow").write_text("other content")
    with pytest.raises(InputError, match=r"plan\.arrow is damaged"):
        artifacts.read(folder, "pack")
