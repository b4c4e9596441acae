"""The only place that writes or reads a stage's output folder.

A stage writes into a folder beside its target, which gets a ``manifest.json`` and takes the target's place by one
rename: a reader sees the old output or the new one. Whoever reads it gets the bytes that were written, or InputError
with the damaged file's name. :func:`folder_digest` is DVC's own directory hash, so ``dvc.lock``, Dagster's data version
and MLflow's dataset digest are the same 32 characters.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar, overload

from dti_pipeline import locks
from dti_pipeline.errors import InputError
from dti_pipeline.plain import from_plain, to_plain

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
#: Key of a JSON file that holds the digest of all its others.
SEAL = "seal"
#: Keys of a manifest that was written before manifests had a seal.
UNSEALED = {"schema_version", "stage", "report", "config", "inputs", "files"}
#: Name of an output that has stepped aside, in its draft.
OLD = ".old"
#: A file that was written so short a time ago may change again within one tick of the file system's clock.
SETTLED_SECONDS = 1.0
#: Files digested at a time where there is this much to read: each is bound by one core.
THREADS, THREADED_BYTES = 4, 1 << 26
#: Digests of this process's files by device, inode, size and times.
_known: dict[tuple[int, ...], str] = {}
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


@dataclass(frozen=True)
class Inputs:
    """Files or folders that a stage reads, with their digests from before it read them."""

    paths: Mapping[str, Path]
    digests: Mapping[str, str]

    @classmethod
    def of(cls, paths: Mapping[str, Path]) -> Inputs:
        """Digest the inputs. Raises InputError where one does not exist. Cost: a read of every file."""
        return cls(paths, {name: digest(path) for name, path in paths.items()})

    @classmethod
    def published(cls, **folders: tuple[Path, str]) -> Inputs:
        """Digest what stages published, each with the command that makes it; raises as :func:`read` does."""
        for folder, made_by in folders.values():
            read(folder, made_by)
        return cls.of({name: folder for name, (folder, _) in folders.items()})

    def __or__(self, other: Inputs) -> Inputs:
        return Inputs({**self.paths, **other.paths}, {**self.digests, **other.digests})

    def require_unchanged(self) -> None:
        """Raise InputError where an input is no longer what was read. Cost: no file is read again that was not
        touched."""
        for name, path in self.paths.items():
            if not path.exists() or digest(path) != self.digests[name]:
                raise InputError(f"{path} changed while it was read, so nothing was published: run the command again")


def file_digest(path: Path) -> str:
    """MD5 of a file's bytes, as DVC records it: 32 hexadecimal characters.

    Cost: one read a process (docs/reliability.md), and again whenever the file was written to or replaced.
    """
    with path.open("rb") as handle:
        facts = os.fstat(handle.fileno())
        key = _key(facts)
        if key not in _known:
            found = hashlib.file_digest(handle, "md5").hexdigest()
            if time.time() - max(facts.st_mtime, facts.st_ctime) < SETTLED_SECONDS:
                return found
            _known[key] = found
        return _known[key]


def _key(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def trust(folder: Path, made_by: str) -> None:
    """Take the digests of a published folder's files, as they lie there now, from its manifest: another process of this
    machine has just checked them. Raises as :func:`read` does of a manifest alone. Cost: no file is read."""
    for name, known in read(folder, made_by, whole=False).files.items():
        with suppress(FileNotFoundError):  # who reads it says so
            _known[_key((folder / name).stat())] = known


def file_digests(paths: Iterable[Path]) -> list[str]:
    """Digests of files, in order."""
    paths = list(paths)
    if sum(path.stat().st_size for path in paths) < THREADED_BYTES:
        return [file_digest(path) for path in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(file_digest, paths))


def _file_digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    return dict(zip(names, file_digests(files), strict=True))


def folder_digest(folder: Path) -> str:
    """DVC's hash of a directory, less its ``.dir`` ending: 32 hexadecimal characters. Cost: one read of every file."""
    rows = [{"md5": md5, "relpath": name} for name, md5 in sorted(_file_digests(folder).items())]
    return content_digest(rows)


def content_digest(content: Any) -> str:
    """MD5 of plain values as JSON, keys sorted: 32 hexadecimal characters."""
    return hashlib.md5(json.dumps(content, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str:
    """Digest of an input, file or folder. Raises InputError where there is none."""
    if path.is_dir():
        return folder_digest(path)
    if path.is_file():
        return file_digest(path)
    raise InputError(f"{path} does not exist")


@contextmanager
def publish(
    target: Path,
    stage: str,
    config: Mapping[str, Any] | None = None,
    inputs: Inputs | Mapping[str, Path] | None = None,
    links: Mapping[Path, Path] = MappingProxyType({}),
) -> Iterator[Draft]:
    """Write a stage's output folder: all of it or, on an exception, nothing.

    ``config`` is the part of the configuration that shaped the output; ``inputs`` are the files or folders that were
    read. A stage that reads them before it comes here takes their digests first (:meth:`Inputs.of`). ``links`` beside
    the folder, each with what it leads to in it from there, change in the same step. Raises InputError, and publishes
    nothing, where an input has changed since.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    read_from = inputs if isinstance(inputs, Inputs) else Inputs.of(inputs or {})
    with aside(target) as path:
        draft = Draft(path)
        yield draft
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "stage": stage,
            "report": to_plain(draft.report, whole=False),
            "config": dict(config or {}),
            "inputs": dict(read_from.digests),
            "files": _file_digests(path),
        }
        write_json(path / MANIFEST, sealed(manifest))
        read_from.require_unchanged()
        for one, leads_to in links.items():
            link(one, leads_to)
        take_place(path, target)


def recover(target: Path) -> None:
    """Clean up after publications of ``target`` whose process was killed: their drafts go, and an output that had
    stepped aside for a new one comes back."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.draft-*"):
        held = locks.try_folder(path)
        if held is None:
            continue  # its process is at work
        old = path / OLD
        if old.is_dir() and not target.exists():
            old.rename(target)
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A folder beside ``target``, removed at the end; those of killed processes are removed before.

    It is locked while its process lives, whatever ends that.
    """
    recover(target)
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{target.name}.draft-", dir=target.parent))
        held = locks.try_folder(path)
        if held is not None and path.exists():
            break
        if held is not None:  # another process took it for one that was left behind
            os.close(held)
    path.chmod(0o755)  # mkdtemp makes it private; outputs are for everyone who can read the project
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


def take_place(draft: Path, target: Path) -> None:
    """Put a draft in its target's place; what was there before is in the draft's afterwards."""
    if not target.exists():
        draft.rename(target)
    elif not _exchange(draft, target):
        # The old output steps aside: of a crash between the two renames `recover` brings it back.
        with aside(target) as old:
            target.rename(old / OLD)
            draft.rename(target)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def seal_of(content: Mapping[str, Any]) -> str:
    """Digest of a JSON object without its seal."""
    rest = json.loads(json.dumps({key: value for key, value in content.items() if key != SEAL}))
    return content_digest(rest)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its digest under :data:`SEAL`."""
    return {**content, SEAL: seal_of(content)}


def is_whole(content: Any, keys: Set[str]) -> bool:
    """Whether content is an object as :func:`sealed` made it, or one with exactly these keys, from before there were
    seals."""
    if not isinstance(content, dict):
        return False
    return content[SEAL] == seal_of(content) if SEAL in content else content.keys() == keys


def read_sealed(path: Path, keys: Set[str]) -> dict[str, Any]:
    """A JSON object as :func:`sealed` made it; ``keys`` as for :func:`is_whole`. Raises ValueError for any other."""
    damaged = f"{path} is damaged: its content is not what was written"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(damaged) from error
    if not is_whole(content, keys):
        raise ValueError(damaged)
    return content


@overload
def read(folder: Path, made_by: str, *, whole: bool = True) -> Manifest[Any]: ...


@overload
def read(folder: Path, made_by: str, report: type[R], *, whole: bool = True) -> Manifest[R]: ...


def read(folder: Path, made_by: str, report: type[Any] | None = None, *, whole: bool = True) -> Manifest[Any]:
    """The manifest of a published folder, its report as that dataclass, or as it is in the file.

    Raises InputError where there is none, another version wrote it, or a file is damaged; ``made_by`` is the command
    that it names. Cost: a read of every file, once a process; ``whole=False`` looks at the manifest alone.
    """
    path, again = folder / MANIFEST, f"run `dti {made_by}` again"
    if not path.is_file():
        raise InputError(f"{folder} has no {MANIFEST}: run `dti {made_by}` first")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno} is not JSON: {again}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is not UTF-8: {again}") from error
    damaged = InputError(f"{path} is damaged: its content is not what was written: {again}")
    if not isinstance(raw, dict) or (SEAL in raw and not is_whole(raw, UNSEALED)):
        raise damaged
    if raw.get("schema_version") != SCHEMA_VERSION:
        version = raw.get("schema_version")
        raise InputError(f"{path} has schema version {version}, this version reads {SCHEMA_VERSION}: {again}")
    if not is_whole(raw, UNSEALED):
        raise damaged
    said = raw["report"]
    if report is not None:
        try:
            said = from_plain(report, said)
        except InputError as error:
            found = str(error).replace("params key", "key")
            raise InputError(f"{path} is of another version ({found}): {again}") from error
    if whole:
        _require_whole(folder, raw["files"], again)
    return Manifest(folder, raw["stage"], said, raw["config"], raw["inputs"], raw["files"])


def _require_whole(folder: Path, files: Mapping[str, str], again: str) -> None:
    paths = [folder / name for name in files]
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path} is missing: {again}")
    for path, expected, found in zip(paths, files.values(), file_digests(paths), strict=True):
        if found != expected:
            raise InputError(f"{path} is damaged: its content is not what was written: {again}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON into place, keys sorted: equal content is equal bytes."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def link(path: Path, target: Path) -> None:
    """Have ``path`` lead to ``target``, a path relative to its folder; what is there goes, in one step."""
    draft = _draft(path)
    if not path.is_symlink() or path.readlink() != target:
        draft.unlink(missing_ok=True)
        draft.symlink_to(target)
        draft.replace(path)


def _draft(path: Path) -> Path:
    """This process's draft of a file, beside it; those that killed processes have left are removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.draft-*"):
        number = left.name.rpartition("-")[2]
        if number.isdecimal() and not _alive(int(number)):
            left.unlink(missing_ok=True)
    return path.with_name(f".{path.name}.draft-{os.getpid()}")


def _alive(process: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True
