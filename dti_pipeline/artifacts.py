"""The only place that writes or reads a stage's output folder.

A stage writes into a folder beside its target, which gets a ``manifest.json`` and takes the target's place by rename:
a reader sees the old output or the new one. :func:`folder_digest` is DVC's own directory hash, so ``dvc.lock``,
Dagster's data version and MLflow's dataset digest are the same 32 characters.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from dti_pipeline.errors import InputError
from dti_pipeline.plain import from_plain, to_plain

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
R = TypeVar("R")


@dataclass
class Draft:
    """A stage's output while it is being written: put files into ``path``, and set ``report``, a dataclass."""

    path: Path
    report: Any = None


@dataclass(frozen=True)
class Manifest(Generic[R]):
    """Metadata of a published folder."""

    path: Path
    stage: str
    report: R
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]


def file_digest(path: Path) -> str:
    """MD5 of a file's bytes, as DVC records it: 32 hexadecimal characters. Cost: one read."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "md5").hexdigest()


def _file_digests(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in folder.rglob("*") if p.is_file()}


def folder_digest(folder: Path) -> str:
    """DVC's hash of a directory, less its ``.dir`` ending: 32 hexadecimal characters. Cost: one read of every file."""
    rows = [{"md5": md5, "relpath": name} for name, md5 in sorted(_file_digests(folder).items())]
    return hashlib.md5(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """Digest of an input, file or folder. Raises InputError where there is none."""
    if path.is_dir():
        return folder_digest(path)
    if path.is_file():
        return file_digest(path)
    raise InputError(f"{path} does not exist")


@contextmanager
def publish(
    target: Path, stage: str, config: Mapping[str, Any] | None = None, inputs: Mapping[str, Path] | None = None
) -> Iterator[Draft]:
    """Write a stage's output folder: all of it or, on an exception, nothing.

    ``config`` is the part of the configuration that shaped the output; ``inputs`` are the files or folders that were
    read, recorded by digest before the work starts.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    digests = {name: digest(path) for name, path in (inputs or {}).items()}
    draft = Draft(Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent)))
    draft.path.chmod(0o755)  # mkdtemp makes it private; outputs are for everyone who can read the project
    try:
        yield draft
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "stage": stage,
            "report": to_plain(draft.report, whole=False),
            "config": dict(config or {}),
            "inputs": digests,
            "files": _file_digests(draft.path),
        }
        write_json(draft.path / MANIFEST, manifest)
        _take_place(draft.path, target)
    except BaseException:
        shutil.rmtree(draft.path, ignore_errors=True)
        raise


@contextmanager
def alone(target: Path) -> Iterator[None]:
    """Hold an output that takes hours: a second process that would make it waits for this one's end, whatever it is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is making %s: waiting for it to end", target)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _take_place(draft: Path, target: Path) -> None:
    if not target.exists():
        draft.rename(target)
        return
    # A folder cannot be renamed over one that holds files: the old one steps aside. A crash between the two renames
    # leaves no target, never a mixture.
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old / target.name)
    draft.rename(target)
    shutil.rmtree(old)


@overload
def read(folder: Path, made_by: str) -> Manifest[Any]: ...


@overload
def read(folder: Path, made_by: str, report: type[R]) -> Manifest[R]: ...


def read(folder: Path, made_by: str, report: type[Any] | None = None) -> Manifest[Any]:
    """The manifest of a published folder, its report as that dataclass, or as it is in the file.

    Raises InputError where there is none or another version wrote it; ``made_by`` is the command that it names.
    """
    path, again = folder / MANIFEST, f"run `dti {made_by}` again"
    if not path.is_file():
        raise InputError(f"{folder} has no {MANIFEST}: run `dti {made_by}` first")
    try:
        raw = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno} is not JSON: {again}") from error
    if raw.get("schema_version") != SCHEMA_VERSION:
        version = raw.get("schema_version")
        raise InputError(f"{path} has schema version {version}, this version reads {SCHEMA_VERSION}: {again}")
    said = raw["report"]
    if report is not None:
        try:
            said = from_plain(report, said)
        except InputError as error:
            found = str(error).replace("params key", "key")
            raise InputError(f"{path} is of another version ({found}): {again}") from error
    return Manifest(folder, raw["stage"], said, raw["config"], raw["inputs"], raw["files"])


def write_json(path: Path, content: Any) -> None:
    """Write JSON into place, keys sorted: equal content is equal bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
