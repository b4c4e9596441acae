"""One run of the study in a process of its own: ``python -m experiments.run GRID WORK DIGEST WORKERS``.

It trains, and evaluates where the run measures quality, in a home that borrows the log's data; it keeps the row and the
predictions and removes the rest. An interrupted run goes on from its checkpoint when it is started again.
"""

from __future__ import annotations

import csv
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline import artifacts, lineage, locks, pipeline
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.evaluation import metrics
from dti_pipeline.evaluation.interactions import Array
from dti_pipeline.evaluation.report import Slice, Slices
from dti_pipeline.packing.report import TokenizeReport
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from dti_pipeline.training.report import TrainReport
from experiments import grid as grids
from experiments import logs
from experiments.grid import Run

ROW, PREDICTIONS = "row.json", "predictions.parquet"
#: Columns taken from a training's report, and from an evaluation's.
TRAINED = (
    "train_seconds", "targets_per_second", "tokens_per_second", "targets", "tokens", "tokens_per_target", "steps",
    "parameters", "loss", "validation_auc", "peak_memory_gib", "hardware",
)  # fmt: skip
EVALUATED = ("auc", "auc_streaming", "log_loss", "gauc", "ece")


def folder(work: Path, run: Run) -> Path:
    """Where a run keeps its row and predictions."""
    return work / run.home / "runs" / run.digest


def execute(run: Run, work: Path, workers: int = 1) -> dict[str, Any]:
    """Pack, train and, where quality is measured, evaluate, which leaves predictions; publish and return the row."""
    own, data = folder(work, run), work / run.home
    with locks.alone(own):
        if (own / ROW).is_file():  # a process that outlived the command that started it has finished it
            return {}
        paths = Paths(own / "home")
        noted = paths.home / "workers"  # the most at a time during any part of this run: its seconds are of all parts
        workers = max(workers, int(noted.read_text()) if noted.is_file() else 0)
        artifacts.write_text(noted, str(workers))
        shards = logs.packed(run, data)
        for made, at in ((data / "data" / "events", paths.events), (data / "data" / "tokens", paths.tokens)):
            logs.link(made, at)
        logs.link(shards, paths.shards(run.paradigm))
        facts = {"workers": workers, "data": logs.digest(data), "commit": lineage.commit_name()}
        row = run.facts() | facts | _train(run, paths)
        if run.measure == "quality":
            row |= _evaluate(run, paths, own)
        artifacts.write_json(own / ROW, row)
        shutil.rmtree(own / "home")
    return row


def _train(run: Run, paths: Paths) -> dict[str, Any]:
    model = paths.model(run.paradigm)
    made = (model / artifacts.MANIFEST).is_file()
    if not made or artifacts.read(model, "train").inputs["tokens"] != artifacts.folder_digest(paths.tokens):
        pipeline.execute(pipeline.TRAIN, run.config, paths, run.paradigm)
    report = artifacts.read(model, "train", TrainReport).report
    tokens = artifacts.read(paths.tokens, "tokenize", TokenizeReport).report
    users = int((TokenStore.open(paths.tokens).position == 0).sum())
    with (model / "history.csv").open(newline="", encoding="utf-8") as handle:
        points = [line for line in csv.DictReader(handle) if line["val_auc"]]
    return {name: getattr(report, name) for name in TRAINED} | {
        "tokens_per_interaction": tokens.tokens_per_interaction,
        "interactions_per_user": round(tokens.interactions / users, 4),
        "learning": [[round(float(p["train_seconds"]), 3), round(float(p["val_auc"]), 6)] for p in points],
    }


def _evaluate(run: Run, paths: Paths, own: Path) -> dict[str, Any]:
    begun = time.monotonic()
    report = pipeline.execute(pipeline.EVALUATE, run.config, paths, run.paradigm)
    seconds = time.monotonic() - begun
    found = pq.read_table(paths.evaluation(run.paradigm) / PREDICTIONS)
    users = found["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    row, label, probability = (found[name].to_numpy() for name in ("row", "label", "probability"))
    keep_predictions(own, row, users, label, probability)
    return {name: getattr(report, name) for name in EVALUATED} | {
        "uauc": report.forms.sliding_window.uauc,
        "auc_by_history": {part.bucket: part.auc for part in report.slices.history_length},
        "auc_by_item": {part.bucket: part.auc for part in _by_item(report.slices)},
        "test_targets": report.targets,
        "test_users": report.users,
        "evaluate_seconds": round(seconds, 1),
    }


def _by_item(slices: Slices) -> Iterator[Slice]:
    """Cold items and all others; then of the cold ones those that training never showed, and those it hardly did."""
    yield from slices.cold_items
    first = {part.bucket: int(part.bucket.rstrip("+").partition("-")[0]) for part in slices.item_popularity}
    yield from (part for part in slices.item_popularity if first[part.bucket] < metrics.COLD_BUCKETS[1])


def keep_predictions(own: Path, row: Array, user: Array, label: Array, probability: Array) -> None:
    """Write the scores of the test targets (N,), ordered by row: paired differences between runs are made of them."""
    columns = {"row": row.astype(np.int64), "user": user.astype(np.int32), "label": label.astype(np.int8)}
    table = pa.table(columns | {"probability": probability.astype(np.float32)})
    own.mkdir(parents=True, exist_ok=True)
    aside = own / f".{PREDICTIONS}"
    pq.write_table(table, aside, compression="zstd")
    aside.replace(own / PREDICTIONS)


def main(file: str, work: str, digest: str, workers: str) -> int:
    """Exit code 0 done, 1 interrupted or failed, 2 bad input; the last line of standard error says why."""
    run = next(run for run in grids.load(Path(file)).runs if run.digest == digest)
    try:
        execute(run, Path(work), int(workers))
    except (InputError, CheckFailed) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
