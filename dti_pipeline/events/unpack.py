"""A zip archive into a folder, nothing outside it."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from dti_pipeline.errors import InputError

MAX_BYTES = 4 << 30  # unpacked; the largest log in the catalogue has a hundredth of it
MAX_MEMBERS = 10_000  # likewise a thousandth


def unpack(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> list[str]:
    """Unpack into ``folder``, less the one top folder that holds everything, if there is one; returns the names.

    Raises InputError for a corrupt archive, for members that are absolute, climb out, are links or are encrypted, and
    for none at all or more than :data:`MAX_MEMBERS`, and for more than ``max_bytes`` in all, by sizes that reading
    holds the members to.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            if not members:
                raise InputError(f"{archive} has no files in it")
            if len(members) > MAX_MEMBERS:
                raise InputError(f"{archive} has {len(members)} files, more than {MAX_MEMBERS}: it was not unpacked")
            for member in members:
                _check(archive, member)
            if sum(member.file_size for member in members) > max_bytes:
                raise InputError(f"{archive} unpacks to more than {max_bytes} bytes: it was not unpacked")
            paths = [PurePosixPath(member.filename).parts for member in members]
            nested = len({parts[0] for parts in paths}) == 1 and all(len(parts) > 1 for parts in paths)
            for member, parts in zip(members, paths, strict=True):
                member.filename = "/".join(parts[1:] if nested else parts)
                opened.extract(member, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive} is not a whole zip archive: {error}") from error
    except (NotImplementedError, OSError) as error:  # a way of packing unknown here; members in each other's place
        raise InputError(f"{archive} cannot be unpacked: {error}") from error
    return sorted(member.filename for member in members)


def _check(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or not path.parts or ".." in path.parts or ":" in path.parts[0]:
        raise InputError(f"{archive} has a member that leaves its folder ({member.filename}): it was not unpacked")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InputError(f"{archive} has a member that is a link ({member.filename}): it was not unpacked")
    if member.flag_bits & 1:
        raise InputError(f"{archive} has an encrypted member ({member.filename}): it was not unpacked")
