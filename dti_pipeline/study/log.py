"""A log of the study: read, checked and tokenised once in a home of its own, packed once for each form of prompt."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq

from dti_pipeline import artifacts, pipeline
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.study.grid import LOG_SECTIONS, Grid, Run, settings
from dti_pipeline.study.rehearsal import rehearse

#: Columns that make a log the log it is.
SAID = ("user_id", "item_id", "item_text", "label", "split", "position")
#: The stages that make a log's tokens, with the sections that shape what each publishes.
STAGES = {"ingest": LOG_SECTIONS, "validate": (), "tokenize": ("tokens",)}


def prepare(grid: Grid, name: str, work: Path, logs: Mapping[str, Path], home: Paths) -> None:
    """Events and tokens of a log in ``work / name``; what is published there under the same parameters is kept.
    A rehearsal has those of the log it is made of prepared first. A second call for the same log waits for the first.

    ``logs`` says where raw logs lie that are not where the grid says, in ``home``. Raises InputError where events must
    be made and what makes them is not installed.
    """
    config, paths = grid.config(name), Paths(work / name)
    rehearsal = grid.data_sets[name].rehearsal
    shape = settings(config, tuple(dict.fromkeys(section for sections in STAGES.values() for section in sections)))
    shape |= {"rehearsal": asdict(rehearsal)} if rehearsal else {}
    note = paths.tokens.parent / "study.json"
    with artifacts.alone(note.parent):
        made = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        if made == shape and (paths.tokens / artifacts.MANIFEST).is_file():
            return
        if rehearsal:
            prepare(grid, rehearsal.of, work, logs, home)
            rehearse(Paths(work / rehearsal.of), paths, rehearsal.train)
            # The rows passed their checks in the log that they come from.
            config = replace(config, validation=replace(config.validation, required=False))
            pipeline.BY_NAME["tokenize"].run(config, paths)
        else:
            _make(name, config, paths.home, logs.get(name) or home.resolve(config.events.path))
        artifacts.write_json(note, shape)


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
