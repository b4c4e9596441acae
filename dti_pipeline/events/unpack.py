"""A zip archive into a folder, nothing outside it."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from dti_pipeline.errors import InputError

BLOCK = 1 << 20  # bytes
MAX_BYTES = 4 << 30  # unpacked; the largest log in the catalogue has a hundredth of it


def unpack(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> list[str]:
    """Unpack into ``folder``, less the one top folder that holds everything, if there is one; returns the names.

    Raises InputError for a corrupt archive, for members that are absolute, climb out, are links or are encrypted, and
    for more than ``max_bytes`` in all, counted as they come.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            for member in members:
                _check(archive, member)
            paths = [PurePosixPath(member.filename).parts for member in members]
            nested = len({parts[0] for parts in paths}) == 1 and all(len(parts) > 1 for parts in paths)
            left, names = max_bytes, []
            for member, path in zip(members, paths, strict=True):
                parts = path[1:] if nested else path
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(member) as source, target.open("wb") as sink:
                    while block := source.read(BLOCK):
                        left -= len(block)
                        if left < 0:
                            raise InputError(f"{archive} unpacks to more than {max_bytes} bytes: it was not unpacked")
                        sink.write(block)
                names.append("/".join(parts))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{archive} is not a whole zip archive: {error}") from error
    except (NotImplementedError, OSError) as error:  # a way of packing unknown here; members in each other's place
        raise InputError(f"{archive} cannot be unpacked: {error}") from error
    return sorted(names)


def _check(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or not path.parts or ".." in path.parts or ":" in path.parts[0]:
        raise InputError(f"{archive} has a member that leaves its folder ({member.filename}): it was not unpacked")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InputError(f"{archive} has a member that is a link ({member.filename}): it was not unpacked")
    if member.flag_bits & 1:
        raise InputError(f"{archive} has an encrypted member ({member.filename}): it was not unpacked")
