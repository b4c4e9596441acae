"""A log that grows: files that came later are loads, each made once, beside what was made before.

The interactions of a load are the whole histories of the users who have rows in it, as they are with it. Rows of
earlier files stand there with the split ``context``: they are no targets a second time. So what was made of earlier
files keeps its bytes, and each row of the load knows what it would know in a log that is read as one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.events.database import scripts
from dti_pipeline.events.published import INTERACTIONS, QUARANTINE, load_folder
from dti_pipeline.events.report import IngestReport, LoadReport
from dti_pipeline.events.sources import File, Log
from dti_pipeline.events.staging import Parts

LOADS_VERSION = 1  # of the code that makes a load; goes into its key, as the text of the SQL does


@dataclass(frozen=True)
class Load:
    """Files that came together; those before all loads are number 0."""

    number: int
    name: str | None
    logs: tuple[File, ...]
    items: tuple[File, ...]
    users: tuple[File, ...]

    def folder(self, events: Path) -> Path:
        """Where its files lie below a folder of events."""
        return load_folder(events, self.number)


def cut(log: Log, root: Path, first: str | None) -> list[Load]:
    """The files before ``first`` (``events.loads_from``; None: all of them), and each load from there on.

    A load is a folder below ``root``, or a file that lies there by itself; a file of items or of users is of the load
    in whose folder it lies, else of the files before. Raises InputError where there is no file before all loads.
    """
    if first is None:
        return [Load(0, None, log.logs, log.items, log.users)]
    if not root.is_dir():
        raise InputError(f"params key `events.loads_from` needs a folder, and `events.path` names the file {root}")
    names = sorted({name for file in log.logs if (name := _name(file)) >= first})
    if all(_name(file) in names for file in log.logs if file.form):
        raise InputError(f"params key `events.loads_from` is {first}, and no file of {root} comes before it by name")

    def of(files: Sequence[File], name: str | None) -> tuple[File, ...]:
        return tuple(file for file in files if (_name(file) if _name(file) in names else None) == name)

    kinds = log.logs, log.items, log.users
    return [Load(i, name, *(of(files, name) for files in kinds)) for i, name in enumerate([None, *names])]


def _name(file: File) -> str:
    folder, _, _ = file.name.rpartition("/")
    return folder or file.name


def keys(loads: Sequence[Load], parts: Parts, recorded: Mapping[str, Any]) -> Iterator[str]:
    """Of each load a digest of all that it is made of: settings, code, and its files and those before it, as they were
    parsed. It parts loads that are there already from those that are to be made."""
    key = artifacts.content_digest([LOADS_VERSION, scripts(), recorded])
    for load in loads:
        kinds = zip((load.logs, load.items, load.users), parts, strict=True)
        named = [[[file.name, of[file.name].name] for file in files if file.name in of] for files, of in kinds]
        key = artifacts.content_digest([key, load.name, named])
        yield key


def made_before(events: Path) -> dict[tuple[int, str], LoadReport]:
    """Loads that a folder of events holds, by number and key; none where it is not whole."""
    with suppress(InputError):
        report = artifacts.read(events, "ingest", IngestReport).report
        return {(number, load.key): load for number, load in enumerate(report.loads or ())}
    return {}


def keep(before: Path, now: Path) -> None:
    """Take a load's files from one folder into another: as links where the file system has them, since files of a
    published folder are replaced and never written to."""
    now.mkdir(parents=True, exist_ok=True)
    for name in (INTERACTIONS, QUARANTINE):
        try:
            os.link(before / name, now / name)
        except OSError:
            shutil.copyfile(before / name, now / name)
