"""The logs of a study: read, checked and tokenised once in a home of their own, packed once for each form of prompt."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dti_pipeline import artifacts, locks, pipeline
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from experiments.grid import Grid, Run
from experiments.grid import home as folder
from experiments.identity import DATA_SECTIONS, settings

#: Columns that make a log the log it is.
CONTENT = ("user_id", "item_id", "item_text", "label", "split", "position")
KNOWN = ("request", "known")


def prepare(
    grid: Grid, name: str, work: Path, logs: Mapping[str, Path], home: Paths, delay: float | None = None
) -> None:
    """Publish events and tokens of a log in its folder of ``work``, :func:`grid.home`; what stands there under the same
    parameters is kept.

    ``logs`` says where raw logs lie that are not where the grid says, in ``home``. Raises InputError where events must
    be made and DuckDB, which makes them, is not installed.
    """
    late = {} if delay is None else {"split": {"feedback_delay": delay}}
    config, paths = grid.config(name, late), Paths(work / folder(name, delay))
    rehearsal = grid.data_sets[name].rehearsal
    shape = settings(config, DATA_SECTIONS) | ({"rehearsal": asdict(rehearsal)} if rehearsal else {})
    note = paths.tokens.parent / "study.json"
    with locks.alone(note.parent):
        made = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
        if made == shape and (paths.tokens / artifacts.MANIFEST).is_file():
            return
        if rehearsal:
            prepare(grid, rehearsal.of, work, logs, home)
            rehearse(Paths(work / rehearsal.of), paths, rehearsal.train)
            # The rows passed their checks in the log that they come from.
            config = replace(config, validation=replace(config.validation, required=False))
            stages = ["tokenize"]
        elif importlib.util.find_spec("duckdb") is None:
            raise InputError(
                f"{paths.home} holds no tokens of {name} made with these parameters, and duckdb is not installed here:"
                " run `dti study --prepare` where it is, and bring the folder along"
            )
        else:
            stages = ["ingest", "validate", "tokenize"]
            if config.events.source == "synthetic":
                stages.insert(0, "synth")
            else:
                given = logs.get(name) or logs.get(grid.data_sets[name].log or name)
                log, items = given or home.resolve(config.events.path), config.events.items_path
                titles = items and str(home.resolve(items))
                config = replace(config, events=replace(config.events, path=str(log), items_path=titles))
        for stage in stages:
            pipeline.execute(pipeline.BY_NAME[stage], config, paths)
        artifacts.write_json(note, shape)


def rehearse(log: Paths, past: Paths, train: float) -> None:
    """Publish the events of ``past``: the log less its test rows, the first share ``train`` of every user's rows to
    train on, and the log's validation targets.

    For choosing a recipe where items age: training hardly shows the items of a log's test targets, but those of its
    validation targets. The rows between get the test split, which nobody scores: they are context only. ``log`` must
    be split by ``user_order``. Cost: one read of the events, in memory.
    """
    manifest = artifacts.read(log.events, "ingest")
    table = pq.read_table(log.events / "interactions.parquet")
    user = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    share = table["request"].to_numpy() / np.bincount(user)[user]
    validation = pc.equal(table["split"], "validation").to_numpy()
    split = np.where(validation, "validation", np.where(share < train, "train", "test"))
    kept = pc.not_equal(table["split"], "test")
    table = table.set_column(table.schema.get_field_index("split"), "split", pa.array(split)).filter(kept)
    with artifacts.publish(past.events, "ingest", manifest.config, {"events": log.events}) as draft:
        pq.write_table(table, draft.path / "interactions.parquet", compression="zstd")
        draft.report = manifest.report


def digest(home: Path) -> str:
    """12 hexadecimal characters of a log's content in order, whatever library wrote it and however it is tokenised.

    Rows that know every label before them say nothing of it, as before there was anything else to know.
    """
    table = pq.read_table(Paths(home).events / "interactions.parquet", columns=[*CONTENT, *KNOWN])
    told = [name for name in KNOWN if not table[name].equals(table["position"])]
    found = hashlib.md5()
    for column in table.select([*CONTENT, *told]).columns:
        codes = column.combine_chunks().dictionary_encode()
        found.update(codes.indices.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        found.update("\0".join(map(str, codes.dictionary.to_pylist())).encode())
    return found.hexdigest()[:12]


def packed(run: Run, home: Path) -> Path:
    """The folder of a run's row plans, made where there are none of these tokens. Safe in many processes."""
    paths = Paths(home / "packed" / run.packing_digest)
    folder = paths.shards(run.paradigm)
    with locks.alone(folder):
        link(home / "data" / "tokens", paths.tokens)
        tokens = artifacts.folder_digest(paths.tokens)
        made = (folder / artifacts.MANIFEST).is_file()
        if not made or artifacts.read(folder, "pack").inputs["tokens"] != tokens:
            pipeline.execute(pipeline.PACK, run.config, paths, run.paradigm)
    return folder


def link(target: Path, at: Path) -> None:
    """Put a link to a folder in place of an older one. By rename: two runs of one packing may do this at once."""
    at.parent.mkdir(parents=True, exist_ok=True)
    aside = at.with_name(f".{at.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target.resolve())
    aside.replace(at)
