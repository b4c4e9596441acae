"""Published folders from an S3-compatible store into a home: ``dti download``.

A folder comes aside, file by file, each checked against its manifest, and takes its place by one rename when it is
whole. What an interruption left aside is not fetched again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dti_pipeline import artifacts, locks
from dti_pipeline.address import Address, are_names
from dti_pipeline.artifacts import MANIFEST
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.stores import transfer
from dti_pipeline.stores.folders import chosen, is_published
from dti_pipeline.stores.report import Moved, TransferReport
from dti_pipeline.stores.s3 import Bucket, Heard, Object

#: Bytes of a manifest, at most; the name of a folder that is not whole yet ends so; in it, parts of files.
LONGEST_MANIFEST, UNFINISHED, PARTS = 64 << 20, ".download", ".parts"


@dataclass(frozen=True)
class _Folder:
    """A folder of the store: its manifest, its files with their digests; and what the home has there."""

    target: Path
    manifest: bytes
    files: dict[str, tuple[Object, str]]
    here: Literal["it", "it, damaged", "another", "nothing"]

    @property
    def draft(self) -> Path:
        return self.target.with_name(f".{self.target.name}{UNFINISHED}")

    @property
    def bytes(self) -> int:
        return sum(found.size for found, _ in self.files.values())


def download(
    paths: Paths,
    source: Address,
    wanted: Sequence[str] = (),
    replace: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> TransferReport:
    """Bring what :func:`dti_pipeline.stores.upload.upload` brought below ``source`` into a home; a folder that is here
    already stays.

    ``wanted``: folders, or folders above them; none: all. Where the home has another folder of that name nothing is
    fetched, unless ``replace``. Raises InputError then, for an object that is damaged, and for a store that refuses;
    the next download goes on where this one stopped. Cost: a listing, a read of every file that comes.
    """
    bucket = Bucket(source.bucket)
    there = {one.address.key.removeprefix(source.below.key): one for one in bucket.below(source.below)}
    names = chosen(_folders(there), wanted, str(source))
    with locks.hold(writes=[paths.home / name for name in names]):
        folders = {name: _compared(bucket, paths.home / name, name, there, source) for name in names}
        coming = {name: folder for name, folder in folders.items() if folder.here != "it"}
        others = [str(folder.target) for folder in coming.values() if folder.here == "another"]
        if others and not replace:
            raise InputError(
                f"the home has another {', another '.join(others)} than the store: --replace puts the store's in place"
            )
        with transfer.bar("download", sum(folder.bytes for folder in coming.values())) as heard:
            for name, folder in coming.items():
                say(f"{name} comes from {source / name}")
                _take(bucket, folder, heard)
    if paths.comparison.is_dir():
        for link, leads_to in paths.comparison_links().items():
            artifacts.link(link, leads_to)
    return TransferReport(
        str(source),
        {
            name: Moved(len(one.files), one.bytes, *((len(one.files), one.bytes) if name in coming else (0, 0)))
            for name, one in folders.items()
        },
    )


def _folders(there: dict[str, Object]) -> list[str]:
    """Folders that have a manifest and are below none that has one."""
    found: list[str] = []
    for key in sorted(there):
        name, slash, last = key.rpartition("/")
        if last == MANIFEST and slash and are_names(key.split("/")) and is_published(name):
            found.append(name)
    return [name for name in found if not any(name.startswith(f"{other}/") for other in found)]


def _compared(bucket: Bucket, target: Path, name: str, there: dict[str, Object], source: Address) -> _Folder:
    """A folder of the store beside the home's. Raises InputError where its manifest is none, or names what is not
    there."""
    manifest = there[f"{name}/{MANIFEST}"]
    if manifest.size > LONGEST_MANIFEST:
        raise InputError(f"{manifest.address} has more than {LONGEST_MANIFEST} bytes: it is no manifest")
    content = b"".join(bucket.pieces(manifest))
    files = {}
    for file, md5 in _files(content, f"upload {source} {name}", source / name).items():
        if not are_names(file.split("/")) or f"{name}/{file}" not in there:
            raise InputError(f"{source / name} lacks {file}, which its manifest names: upload it again")
        files[file] = there[f"{name}/{file}"], md5
    return _Folder(target, content, files, _here(target, content))


def _files(manifest: bytes, made_by: str, address: Address) -> dict[str, str]:
    """Digests of files by name, as a manifest has them. Raises InputError where it is none."""
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, MANIFEST).write_bytes(manifest)
        try:
            return artifacts.read(Path(scratch), made_by, whole=False).files
        except InputError as error:
            raise InputError(str(error).replace(scratch, str(address))) from None


def _here(target: Path, manifest: bytes) -> Literal["it", "it, damaged", "another", "nothing"]:
    path = target / MANIFEST
    if not target.exists():
        return "nothing"
    if not path.is_file() or path.read_bytes() != manifest:
        return "another"
    try:
        artifacts.read(target, "download")
    except InputError:
        return "it, damaged"
    return "it"


def _take(bucket: Bucket, folder: _Folder, heard: Heard) -> None:
    """Bring a folder's files, and put it in its place."""
    draft, parts = folder.draft, folder.draft / PARTS
    draft.mkdir(parents=True, exist_ok=True)
    (draft / MANIFEST).write_bytes(folder.manifest)
    kept = {draft / MANIFEST, *(draft / name for name in folder.files), *parts.glob("*")}
    for path in sorted(draft.rglob("*"), reverse=True):  # of an upload that was replaced since
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.is_file() and path not in kept:
            path.unlink()

    def take(name: str, heard: Heard) -> None:
        found, md5 = folder.files[name]
        path = draft / name
        if path.is_file() and artifacts.file_digest(path) == md5:
            heard(found.size)
            return
        transfer.fetch(bucket, found, path, parts, heard)
        if artifacts.file_digest(path) != md5:
            path.unlink()
            raise InputError(
                f"{found.address} is not what its manifest says: it is damaged, or an upload is replacing it"
            )

    transfer.each(take, list(folder.files), heard)
    shutil.rmtree(parts, ignore_errors=True)
    artifacts.recover(folder.target)
    artifacts.take_place(draft, folder.target)
    shutil.rmtree(draft, ignore_errors=True)  # what was there before, if anything was
