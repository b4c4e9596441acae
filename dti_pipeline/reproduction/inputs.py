"""The inputs of a run, found again by their digests: in the home, or in DVC's cache."""

from __future__ import annotations

import configparser
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events.sources import locate
from dti_pipeline.paths import Paths


def take(config: Config, paths: Paths, into: Paths, digests: Mapping[str, str], events: str, run: str) -> str:
    """Put the inputs of a run into a fresh home: its raw log, or else its events; what it was, in words.

    ``digests`` are of the files of the log, by the ledger's names; ``events`` of the folder. Raises InputError, which
    names the first file that is another one, where neither is there.
    """
    if config.events.source == "synthetic" and paths.resolve(config.events.path) == paths.synthetic:
        return "the raw log, made anew"
    wrong = _first_other(config, paths, digests)
    if wrong is None:
        for path in filter(None, (config.events.path, config.events.items_path, config.events.users_path)):
            _link(paths, into, path)
        return f"the raw log, {paths.resolve(config.events.path)}"
    if paths.events.is_dir() and artifacts.folder_digest(paths.events) == events:
        shutil.copytree(paths.events, into.events)
        return f"the events, {paths.events}"
    cache = _cache(paths.home)
    if cache is not None and _from_cache(cache, events, into.events):
        return f"the events, {cache}"
    raise InputError(
        f"{wrong} (run {run}), and the events that were made of it (digest {events}) are neither in {paths.events} nor"
        " in DVC's cache"
    )


def _first_other(config: Config, paths: Paths, digests: Mapping[str, str]) -> str | None:
    """The first file of the log that is not the one that was read, in a clause; None where all are."""
    try:
        log = locate(config.events, paths, config.tokens)
    except InputError as error:
        return str(error)
    files = {f"log/{file.name}": file.path for file in log.logs}
    files |= {f"items/{file.name}": file.path for file in log.items}
    files |= {f"users/{file.name}": file.path for file in log.users}
    for name, digest in digests.items():
        if name not in files:
            return f"{paths.resolve(config.events.path)} lacks {name.partition('/')[2]}, which was read"
        found = artifacts.file_digest(files[name])
        if found != digest:
            return f"{files[name]} has digest {found}, and {digest} was read"
    for name in files.keys() - digests.keys():
        return f"{files[name]} was not there"
    return None


def _link(paths: Paths, into: Paths, path: str) -> None:
    """The same path of the fresh home leads to what the home has there."""
    target, there = paths.resolve(path), into.resolve(path)
    if there != target and not there.exists():
        there.parent.mkdir(parents=True, exist_ok=True)
        there.symlink_to(target)


def _cache(home: Path) -> Path | None:
    """DVC's cache of files, where the home is a project of DVC's."""
    folder = next((one / ".dvc" for one in (home, *home.parents) if (one / ".dvc").is_dir()), None)
    if folder is None:
        return None
    said = configparser.ConfigParser()
    said.read([folder / "config", folder / "config.local"])
    return folder / said.get("cache", "dir", fallback="cache") / "files" / "md5"


def _from_cache(cache: Path, digest: str, target: Path) -> bool:
    """Copy a folder out of the cache; False where a file of it is not there."""
    listing = cache / digest[:2] / f"{digest[2:]}.dir"
    if not listing.is_file():
        return False
    files = {row["relpath"]: cache / row["md5"][:2] / row["md5"][2:] for row in json.loads(listing.read_text())}
    if not all(path.is_file() for path in files.values()):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with artifacts.aside(target) as draft:
        for name, path in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, draft / name)
        if artifacts.folder_digest(draft) != digest:
            return False
        draft.rename(target)
    return True
