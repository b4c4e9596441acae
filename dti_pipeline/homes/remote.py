"""Parameters for a log in an S3-compatible store: those of its copy in the new home."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dti_pipeline.address import parse
from dti_pipeline.config import EventsConfig
from dti_pipeline.events import remote
from dti_pipeline.homes.propose import Setting
from dti_pipeline.paths import Paths


def proposed_from_store(source: str, home: Path, propose: Callable[[Path], Sequence[Setting]]) -> list[Setting]:
    """What ``propose`` says of the copy, with addresses for paths. The copy stays: `dti ingest` reads it.

    Of one object what lies beside it is not looked at. Raises InputError as :func:`dti_pipeline.events.remote.bring`.
    """
    paths = Paths(home)
    address = parse(source, "--from")
    remote.bring(EventsConfig(source="table", path=str(address)), paths)
    below = paths.remote.relative_to(home).as_posix()
    settings = propose(paths.resolve(str(address)))
    return [
        replace(one, value=f"s3:/{one.value.removeprefix(below)}")
        if isinstance(one.value, str) and one.value.startswith(f"{below}/")
        else one
        for one in settings
    ]
