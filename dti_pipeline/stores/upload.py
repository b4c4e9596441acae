"""Published folders of a home to an S3-compatible store, under their own names: ``dti upload``.

A folder goes file by file, and its manifest comes last: without one it is no folder to whoever downloads. What the
store has already, by its digest, does not go again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dti_pipeline import artifacts, locks
from dti_pipeline.address import Address, are_names
from dti_pipeline.artifacts import MANIFEST
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.stores import transfer
from dti_pipeline.stores.folders import chosen, published
from dti_pipeline.stores.report import Moved, TransferReport
from dti_pipeline.stores.s3 import Bucket, Heard


@dataclass(frozen=True)
class _Folder:
    """A folder that is whole here, and what the store lacks of it."""

    path: Path
    address: Address
    manifest: bytes
    files: Mapping[str, str]  # digests by name
    lacking: Sequence[str]
    current: bool  # the store has this manifest
    old: Sequence[str]  # files of the one that it has instead

    @property
    def bytes(self) -> int:
        return sum((self.path / name).stat().st_size for name in self.files)

    @property
    def lacking_bytes(self) -> int:
        return sum((self.path / name).stat().st_size for name in self.lacking)


def upload(
    paths: Paths, to: Address, wanted: Sequence[str] = (), say: Callable[[str], None] = lambda _: None
) -> TransferReport:
    """Bring published folders to a store, each in its path below ``to``; one that is there in another form is replaced.

    ``wanted``: folders, or folders above them; none: all. No stage changes them meanwhile. Raises InputError for one
    that is damaged here, one that changes, and a store that refuses; the next upload goes on where this one stopped.
    Cost: a read of every file, a request for each that the store has in the same size.
    """
    names = chosen(published(paths.home), wanted, str(paths.home))
    bucket = Bucket(to.bucket)
    # The pages of a validation are written under its own lock.
    reads = [paths.home / name for name in names] + [paths.checks]
    with locks.hold(reads=reads):
        folders = {name: _compared(bucket, paths.home / name, to / name) for name in names}
        with transfer.bar("upload", sum(folder.lacking_bytes for folder in folders.values())) as heard:
            for name, folder in folders.items():
                if folder.lacking or not folder.current:
                    say(f"{name} goes to {folder.address}")
                    _send(bucket, folder, heard)
    return TransferReport(
        str(to),
        {
            name: Moved(len(folder.files), folder.bytes, len(folder.lacking), folder.lacking_bytes)
            for name, folder in folders.items()
        },
    )


def _compared(bucket: Bucket, path: Path, address: Address) -> _Folder:
    """A folder beside what the store has of it. Raises InputError where it is damaged here."""
    stage = artifacts.read(path, "run", whole=False).stage
    files = artifacts.read(path, stage).files
    content = (path / MANIFEST).read_bytes()
    there = bucket.find(address / MANIFEST)
    before = b"" if there is None else b"".join(bucket.pieces(there[0]))
    return _Folder(
        path, address, content, files, _lacking(bucket, path, address, files), before == content, _names(before)
    )


def _lacking(bucket: Bucket, path: Path, address: Address, files: Mapping[str, str]) -> list[str]:
    """Files that the store does not have with their digests."""
    sizes = {one.address: one.size for one in bucket.below(address.below)}

    def has(name: str, _: Heard) -> bool:
        if sizes.get(address / name) != (path / name).stat().st_size:
            return False
        found = bucket.find(address / name)
        return found is not None and found[1] == files[name]

    return [name for name, there in zip(files, transfer.each(has, list(files)), strict=True) if not there]


def _send(bucket: Bucket, folder: _Folder, heard: Heard) -> None:
    """Bring what the store lacks of a folder. While it is neither the old one nor the new one it has no manifest."""
    address = folder.address
    if not folder.current:
        bucket.delete([address / MANIFEST])

    def send(name: str, heard: Heard) -> None:
        bucket.write(folder.path / name, address / name, folder.files[name], heard)

    try:
        transfer.each(send, folder.lacking, heard)
        same = (folder.path / MANIFEST).read_bytes() == folder.manifest
    except FileNotFoundError:
        same = False
    if not same:
        raise InputError(f"{folder.path} changed while it was uploaded: run the command again")
    bucket.delete(address / name for name in folder.old if name not in folder.files)
    bucket.write_bytes(folder.manifest, address / MANIFEST, hashlib.md5(folder.manifest).hexdigest())
    if other := _lacking(bucket, folder.path, address, folder.files):
        raise InputError(f"{address / other[0]} was changed by another upload meanwhile: run the command again")


def _names(manifest: bytes) -> list[str]:
    """Files that a manifest names; none where it is not one."""
    with suppress(ValueError, KeyError, TypeError):
        return [name for name in json.loads(manifest)["files"] if are_names(name.split("/"))]
    return []
