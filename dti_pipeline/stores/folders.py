"""Published folders of a home, which are those that a store has too, and which of them somebody wants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dti_pipeline.artifacts import MANIFEST
from dti_pipeline.errors import InputError

#: Folders of a home that have published ones below them.
ROOTS = ("data", "models", "reports")


def published(home: Path) -> Iterator[str]:
    """Paths of a home's published folders, relative to it, in order; hidden ones are left out."""
    for root in ROOTS:
        yield from (path.relative_to(home).as_posix() for path in _below(home / root))


def is_published(name: str) -> bool:
    """Whether a folder of this path, relative to a home, is one that :func:`published` would name."""
    root, *rest = name.split("/")
    return root in ROOTS and bool(rest) and not any(part.startswith(".") for part in rest)


def chosen(there: Iterable[str], wanted: Sequence[str], where: str) -> list[str]:
    """The folders that are wanted, or lie below one that is; all where nothing is named. Raises InputError for a wish
    that nothing fulfils; ``where`` says in words where they are."""
    there = list(there)
    if not there:
        raise InputError(f"{where} has no published folder below {', '.join(ROOTS)}")
    names = [str(Path(name)) for name in wanted]
    for name in names:
        if not any(f"{one}/".startswith(f"{name}/") for one in there):
            raise InputError(f"{where} has nothing published at {name}: it has {', '.join(there)}")
    return [one for one in there if not names or any(f"{one}/".startswith(f"{name}/") for name in names)]


def _below(folder: Path) -> Iterator[Path]:
    if (folder / MANIFEST).is_file():
        yield folder
    elif folder.is_dir() and not folder.is_symlink():
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield from _below(path)
