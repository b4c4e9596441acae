"""Files below a log's folder: all of them, or a sentence that says which cannot be reached."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from dti_pipeline.errors import InputError


def below(folder: Path, deep: bool) -> tuple[list[Path], list[str]]:
    """Files of a folder and, if ``deep``, of all folders below it, sorted by name; and the names of links to what is
    read under a name of its own.

    Links are followed; a file that several names lead to is there once. Hidden files and folders are left out. Raises
    InputError for a folder that cannot be read.
    """
    paths, again = _walk(folder, deep)
    files: dict[str, Path] = {}  # by where they really are
    for path in sorted(paths, key=lambda path: (path.is_symlink(), path)):
        if files.setdefault(os.path.realpath(path), path) is not path:
            again.append(path)
    return sorted(files.values(), key=lambda path: path.relative_to(folder).as_posix()), [
        path.relative_to(folder).as_posix() for path in again
    ]


def is_like(name: str, patterns: Sequence[str]) -> bool:
    """Whether a file's name is like one of the patterns, in capitals or not."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def chosen(paths: Iterable[Path], patterns: Sequence[str]) -> list[Path]:
    """Those whose name is like one of the patterns, in capitals or not. Raises InputError for one that is no file."""
    found = [path for path in paths if is_like(path.name, patterns)]
    for path in found:
        if not path.exists():
            raise InputError(f"{path} is a link to {os.readlink(path)}, which does not exist")
        if not path.is_file():
            raise InputError(f"{path} is a device, a pipe or a socket: a log is read from files")
    return found


def _walk(folder: Path, deep: bool) -> tuple[list[Path], list[Path]]:
    """All that is no folder, and the links to folders that were read before. Folders come before links to others."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error

    files, again, ahead, seen = [], [], [folder], set()
    while ahead:
        top = ahead.pop(0)
        if os.path.realpath(top) in seen:
            again.append(top)
            continue
        for place, folders, names in os.walk(top, onerror=refuse):
            real = os.path.realpath(place)
            shown = [Path(place, name) for name in sorted(folders) if not name.startswith(".")] if deep else []
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            ahead += [path for path in shown if path.is_symlink()]
            folders[:] = [path.name for path in shown if not path.is_symlink()]
            files += [Path(place, name) for name in names if not name.startswith(".")]
    return files, again
