"""A log of the study: read, checked and tokenised once in a home of its own, packed once for each form of prompt."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dti_pipeline import artifacts, pipeline
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.study.grid import Run, settings

#: Columns that make a log the log it is.
SAID = ("user_id", "item_id", "item_text", "label", "split", "position")
#: The stages that make a log's tokens, with the sections that shape what each publishes.
STAGES = {"ingest": ("synth", "events", "split"), "validate": (), "tokenize": ("tokens",)}


def prepare(name: str, config: Config, home: Path, log: Path) -> None:
    """Events and tokens of a log in ``home``; what is published there under the same parameters is kept.
    A second call for the same home waits for the first.

    Raises InputError where they must be made and what makes them is not installed.
    """
    with artifacts.alone(home / "data"):
        if not current(config, home):
            _make(name, config, home, log)


def _make(name: str, config: Config, home: Path, log: Path) -> None:
    if importlib.util.find_spec("duckdb") is None:
        raise InputError(
            f"{home} holds no tokens of {name} made with these parameters, and duckdb is not installed here: run"
            " `dti study --prepare` where it is, and bring the folder along"
        )
    paths = Paths(home)
    if config.events.source == "synthetic":
        pipeline.BY_NAME["synth"].run(config, paths)
    else:
        config = replace(config, events=replace(config.events, path=str(log)))
    for stage in STAGES:
        pipeline.BY_NAME[stage].run(config, paths)
    artifacts.write_json(paths.tokens.parent / "study.json", _shape(config))


def current(config: Config, home: Path) -> bool:
    """Whether the home's tokens are those of the parameters."""
    note = home / "data" / "study.json"
    made = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    return made == _shape(config) and (Paths(home).tokens / artifacts.MANIFEST).is_file()


def _shape(config: Config) -> dict[str, Any]:
    return settings(config, tuple(dict.fromkeys(section for sections in STAGES.values() for section in sections)))


def digest(home: Path) -> str:
    """12 hexadecimal characters of what the log says: who, what, the label, the split, in order. Whichever version of a
    library wrote the file, and however texts become tokens, which is part of a run's own digest."""
    table = pq.read_table(Paths(home).events / "interactions.parquet", columns=list(SAID))
    found = hashlib.md5()
    for name in SAID:
        codes = table[name].combine_chunks().dictionary_encode()
        found.update(codes.indices.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        found.update("\0".join(map(str, codes.dictionary.to_pylist())).encode())
    return found.hexdigest()[:12]


def packed(run: Run, home: Path) -> Path:
    """The folder of a run's row plans; they are made where there are none of these tokens. Safe in many processes."""
    paths = Paths(home / "packed" / run.packing_digest)
    folder = paths.shards(run.paradigm)
    with artifacts.alone(folder):
        link(home / "data" / "tokens", paths.tokens)
        made = folder / artifacts.MANIFEST
        tokens = artifacts.folder_digest(paths.tokens)
        if not made.is_file() or artifacts.read(folder, "pack").inputs["tokens"] != tokens:
            pipeline.BY_NAME["pack"].run(run.config, paths, run.paradigm)
    return folder


def link(target: Path, at: Path) -> None:
    """A link to a folder, in place of one that was there. By rename: two runs of one packing may do this at once."""
    at.parent.mkdir(parents=True, exist_ok=True)
    aside = at.with_name(f".{at.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target.resolve())
    aside.replace(at)
