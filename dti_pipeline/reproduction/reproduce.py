"""``dti reproduce``: a run made again from its record, in a fresh home, and compared with what it gave."""

from __future__ import annotations

import csv
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dti_pipeline import artifacts, lineage, pretrained
from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.reproduction import inputs
from dti_pipeline.reproduction.report import Compared, Recorded, Reproduction
from dti_pipeline.training.report import TrainReport

#: Columns of history.csv that tell of the clock.
CLOCK = ("train_seconds",)
#: Makes a stage, by its name, in a home; of the paradigm where it exists for each.
Make = Callable[[str, Config, Paths, str], object]


def reproduce(config: Config, paths: Paths, run: Recorded, into: Path, make: Make) -> Reproduction:
    """Make a training of a home again in ``into``, which must not exist, and compare data, weights and metrics.

    Raises InputError where an input with the recorded digest is not there, or the machine lacks what it was trained
    with. Cost: the stages from the raw log to the evaluation.
    """
    record = run.record
    paradigm, said = record["paradigm"], record["inputs"]
    made_by: Config = from_plain(Config, record["config"])
    _require_means(run, made_by)
    if into.exists():
        raise InputError(f"{into} exists: a run is made again in a fresh folder, remove it or name another with --into")
    home = Paths(into.resolve())
    # The checks of the log decide whether there are tokens, not which.
    quiet = replace(made_by, validation=replace(made_by.validation, required=False), execution=config.execution)
    quiet = replace(quiet, tracking=replace(config.tracking, enabled=False))
    into.mkdir(parents=True)
    try:
        made_from = inputs.take(made_by, paths, home, said["log"], said["events"], run.run_id)
    except InputError:
        shutil.rmtree(into)
        raise
    judged = any(name.startswith(f"{made_by.evaluation.split}/") for name in run.metrics)
    if not home.events.is_dir():
        if made_by.events.source == "synthetic":
            make("synth", quiet, home, paradigm)
        make("ingest", quiet, home, paradigm)
    with _threads(record["threads"]):
        for stage in ("tokenize", "pack", "train"):
            make(stage, quiet, home, paradigm)
    if judged:
        with _threads(run.evaluated_by):
            make("evaluate", quiet, home, paradigm)
    compared = (
        *_made_with(record),
        *_data(home, paradigm, said),
        *_weights(run.model, home.model(paradigm)),
        *_training(run.model, home.model(paradigm)),
        *(_metrics(run.metrics, home, paradigm, made_by.evaluation.split) if judged else ()),
    )
    differs = [one for one in compared if one.counts and not one.equal]
    return Reproduction(
        run.run_id, paradigm, not differs, _sentence(run.run_id, compared, differs), made_from, str(into), compared
    )


def _require_means(run: Recorded, made_by: Config) -> None:
    record, said = run.record, run.record["inputs"]
    for name in ("events", "log"):
        if name not in said:
            raise InputError(
                f"run {run.run_id} was trained where the {name} were not: its record does not say what it was made of"
            )
    if record["processes"] > 1:
        raise InputError(
            f"run {run.run_id} was trained by {record['processes']} processes: this command starts one, whose sums are"
            " added up in another order"
        )
    if record["device"].startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"run {run.run_id} was trained on a GPU, and this machine has none")
    base = pretrained.on_disk(made_by.model.name_or_path)
    digest = artifacts.read(run.model, "train").inputs.get("base")
    if digest is not None and (base is None or artifacts.digest(base) != digest):
        found = "is not there" if base is None else f"has digest {artifacts.digest(base)}"
        raise InputError(f"{made_by.model.name_or_path} {found}, and run {run.run_id} read {digest}")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """As many threads as the run had: sums depend on them in their last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _same(part: Any, name: str, then: object, now: object, difference: float | None = None) -> Compared:
    return Compared(part, name, str(then), str(now), difference, then == now)


def _made_with(record: Mapping[str, Any]) -> Iterator[Compared]:
    versions = lineage.versions()
    yield _same("made with", "commit", record["commit"], lineage.commit_name())
    for name in sorted({*record["versions"], *versions}):
        yield _same("made with", name, record["versions"].get(name), versions.get(name))
    gpu = record["device"].startswith("cuda")
    yield _same("made with", "hardware", record["hardware"], lineage.hardware(None if gpu else []))


def _data(home: Paths, paradigm: str, said: Mapping[str, Any]) -> Iterator[Compared]:
    read = artifacts.read(home.events, "ingest").inputs
    for name in sorted({*said["log"], *read}):
        yield _same("data", name, said["log"].get(name), read.get(name))
    for name, folder in (("events", home.events), ("tokens", home.tokens), ("shards", home.shards(paradigm))):
        yield _same("data", name, said[name], artifacts.folder_digest(folder))


def _weights(then: Path, now: Path) -> Iterator[Compared]:
    files = [artifacts.read(folder, "train").files for folder in (then, now)]
    for name in sorted({*files[0], *files[1]}):
        if name.endswith(".safetensors") or name.startswith("tokenizer/"):
            before, after = (one.get(name) for one in files)
            there = name.endswith(".safetensors") and before is not None and after is not None
            yield _same("weights", name, before, after, _apart(then / name, now / name) if there else None)


def _apart(then: Path, now: Path) -> float:
    """The largest difference of two files' tensors; infinite where they are not of the same names and shapes."""
    one, other = load_file(then), load_file(now)
    if {name: x.shape for name, x in one.items()} != {name: x.shape for name, x in other.items()}:
        return math.inf
    return max(
        (float((x.double() - other[name].double()).abs().max()) for name, x in one.items() if x.numel()), default=0
    )


def _training(then: Path, now: Path) -> Iterator[Compared]:
    """The curves of a training, column by column, and its last loss."""
    curves = [_history(folder) for folder in (then, now)]
    for name in sorted({*curves[0], *curves[1]}.difference(CLOCK)):
        one, other = (curve.get(name, []) for curve in curves)
        apart = [abs(float(a) - float(b)) for a, b in zip(one, other, strict=False) if a and b]
        shown = [f"{len([x for x in values if x])} values, last {_last(values)}" for values in (one, other)]
        yield Compared("training", name, shown[0], shown[1], max(apart, default=None), one == other)
    reports = [artifacts.read(folder, "train", TrainReport).report for folder in (then, now)]
    for name in ("steps", "targets", "tokens"):
        yield _same("training", name, *(getattr(report, name) for report in reports))


def _last(values: list[str]) -> str:
    return next((value for value in reversed(values) if value), "none")


def _history(folder: Path) -> dict[str, list[str]]:
    with (folder / "history.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}


def _metrics(then: Mapping[str, float], home: Paths, paradigm: str, split: str) -> Iterator[Compared]:
    found = artifacts.read(home.evaluation(paradigm), "evaluate").report
    for name, value in sorted(then.items()):
        if name.startswith(f"{split}/"):
            now = found.get(name.partition("/")[2])
            number = isinstance(now, (int, float))
            apart = abs(value - now) if number else None
            yield Compared("metrics", name, f"{value:.8g}", f"{now:.8g}" if number else str(now), apart, value == now)


def _sentence(run_id: str, compared: tuple[Compared, ...], differs: list[Compared]) -> str:
    counted = sum(one.counts for one in compared)
    other = [one.name for one in compared if not one.counts and not one.equal]
    made = f"; it was made with another {', '.join(other)}" if other else ""
    if not differs:
        return f"run {run_id} is reproduced: {counted} of {counted} are equal to the last bit{made}"
    first = differs[0]
    return (
        f"run {run_id} is not reproduced: {len(differs)} of {counted} are not equal, first {first.name}"
        f" ({first.then}, now {first.now}){made}"
    )
