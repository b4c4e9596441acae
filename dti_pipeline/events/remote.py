"""A log in an S3-compatible store: a copy of it under the home, which is brought up to date when the log is read.

The copy has the objects' own names, below ``data/raw/.remote/<bucket>``: it is read as a log that was there always.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from dti_pipeline import artifacts, locks
from dti_pipeline.address import Address, are_names
from dti_pipeline.config import EventsConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events.folders import is_like
from dti_pipeline.events.sources import beside, refuse_record
from dti_pipeline.paths import Paths
from dti_pipeline.stores import transfer
from dti_pipeline.stores.s3 import Bucket, Heard, Object

log = logging.getLogger(__name__)
#: Folder of what an interruption left of objects, and file that says of each whole one which it is.
PARTS, RECORD = ".parts", ".objects.jsonl"


@dataclass(frozen=True)
class _Copied:
    """Which object was copied, and the digest of what came."""

    address: str
    etag: str
    size: int
    md5: str


def listed(config: EventsConfig) -> dict[Address, Object]:
    """The objects of a log that lies in a store, in the order of their keys; none is read.

    Hidden ones are left out. Raises InputError, which names the key of params.yaml, where there is none, where one has
    no name that a file can have, for a table that is not read, and where the store does not answer.
    """
    found: dict[Address, Object] = {}
    for name, address in config.addresses().items():
        try:
            objects = {one.address: one for one in _objects(config, address, name == "path")}
        except InputError as error:
            raise InputError(f"params key `events.{name}`: {error}") from None
        if not objects:
            raise InputError(f"params key `events.{name}` names {address}, where there is no object")
        for one in objects if name == "path" else ():
            refuse_record(one.key.removeprefix(address.below.key), str(address))
        found |= objects
    return dict(sorted(found.items(), key=lambda item: item[0].key))


def bring(config: EventsConfig, paths: Paths) -> None:
    """Have in the copy what the store has: new and changed objects come, those that are gone go.

    An object whose copy is whole is not fetched again, and one that an interruption cut goes on where it stopped.
    Raises InputError as :func:`listed` does, and where an object changes while it is read. Cost: a listing, a read of
    the copies, and memory for a few pieces of an object whatever its size.
    """
    addresses = config.addresses()
    roots = [paths.resolve(str(address)) for address in addresses.values()]
    if not roots or any(_elsewhere(root, paths) for root in roots):
        return
    with locks.alone(paths.remote):
        objects = listed(config)
        files = {paths.resolve(str(address)): found for address, found in objects.items()}
        for name, root in zip(addresses, roots, strict=True):
            _remove_gone(root, files, paths.remote, beside(config) if name == "path" and root in files else ())
        _fetch(files, paths.remote)


def _objects(config: EventsConfig, address: Address, is_log: bool) -> Iterator[Object]:
    """Of one address: the object, with those that belong to a log beside it, or all below it."""
    bucket = Bucket(address.bucket)
    alone = bucket.find(address) if address.key and not address.key.endswith("/") else None
    if alone is None:
        yield from _readable(bucket.below(address.below), address.below)
        return
    yield alone[0]
    patterns = beside(config) if is_log else ()
    if patterns:
        found = _readable(bucket.below(address.beside, deep=False), address.beside)
        yield from (one for one in found if is_like(one.address.name, patterns))


def _readable(objects: Iterator[Object], root: Address) -> Iterator[Object]:
    """Without hidden ones and those that stand for a folder. Raises InputError for one that no file can be."""
    for one in objects:
        parts = one.address.key.removeprefix(root.key).split("/")
        if not parts[-1] or any(part.startswith(".") and part not in (".", "..") for part in parts):
            continue
        if not are_names(parts):
            raise InputError(f"{one.address} cannot be copied: its key is no path of a file")
        yield one


def _elsewhere(root: Path, paths: Paths) -> bool:
    """Whether a copy is a link, of a home that was made from another one: it is that one's to change."""
    return not root.resolve().is_relative_to(paths.remote.resolve())


def _remove_gone(root: Path, files: Mapping[Path, Object], remote: Path, patterns: Sequence[str]) -> None:
    """Remove copies of objects that are gone, and a file where a folder has to be, or the other way round."""
    folders = {parent for file in files for parent in file.parents}
    if both := folders & files.keys():
        named = f"params key `events.path`: {files[min(both)].address}"
        raise InputError(f"{named} is an object and a folder, which no copy can be: rename one")
    for above in root.relative_to(remote).parents:
        if (remote / above).is_file():
            (remote / above).unlink()
    companions = [path for path in root.parent.glob("*") if path.is_file() and is_like(path.name, patterns)]
    for path in sorted({root, *root.rglob("*"), *companions}, reverse=True):
        if not path.is_dir():
            if path not in files:
                path.unlink(missing_ok=True)
        elif path not in folders and not any(path.iterdir()):
            path.rmdir()


def _fetch(files: Mapping[Path, Object], remote: Path) -> None:
    record, parts = remote / RECORD, remote / PARTS
    known = _known(record)
    missing = _missing(files, known)
    if not missing:
        return
    log.info("%d of %d objects of the log are fetched", len(missing), len(files))
    remote.mkdir(parents=True, exist_ok=True)
    with (
        transfer.bar("log", sum(files[path].size for path in missing)) as heard,
        record.open("a", encoding="utf-8") as lines,
    ):

        def fetch(path: Path, heard: Heard) -> None:
            one = files[path]
            transfer.fetch(Bucket(one.address.bucket), one, path, parts, heard)
            lines.write(_line(_Copied(str(one.address), one.etag, one.size, artifacts.file_digest(path))))
            lines.flush()

        transfer.each(fetch, missing, heard)
    artifacts.write_text(record, "".join(map(_line, _known(record).values())))
    shutil.rmtree(parts)


def _missing(files: Mapping[Path, Object], known: Mapping[str, _Copied]) -> list[Path]:
    """Files that are not the objects' copies: not there, or of other bytes, or copies of what the objects were."""
    copied = {path: known.get(str(one.address)) for path, one in files.items()}
    same = {
        path: found
        for path, found in copied.items()
        if found and (found.etag, found.size) == (files[path].etag, files[path].size) and path.is_file()
    }
    digests = dict(zip(same, artifacts.file_digests(same), strict=True))
    return [path for path in files if path not in same or digests[path] != same[path].md5]


def _known(record: Path) -> dict[str, _Copied]:
    """What was copied, by address; the last line of an address counts, and one that was cut short does not."""
    found = {}
    for line in record.read_text(encoding="utf-8").splitlines() if record.is_file() else ():
        with suppress(ValueError, TypeError):
            copied = _Copied(**json.loads(line))
            found[copied.address] = copied
    return found


def _line(copied: _Copied) -> str:
    return json.dumps(asdict(copied)) + "\n"
