"""The results of a study: rows of single runs, gathered, compared with one another, and written to two files.

``study_rows.jsonl.xz`` holds a row a run: the columns of :meth:`Run.facts`, figures of training and evaluation, and the
columns that compare it with others (:func:`derive`). A failed run has ``error``. A trial (``measure: validation``) has
``validation_auc``, ``learning`` (training seconds and validation AUC at each point of its curve) and floors of
validation targets, nothing of test targets. ``study.json`` is their summary: means over seeds, and their origin.
"""

from __future__ import annotations

import json
import lzma
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import interactions, metrics
from dti_pipeline.evaluation.bootstrap import Interval, Users, interval, over_seeds
from dti_pipeline.evaluation.floors import floors
from dti_pipeline.evaluation.interactions import Array
from dti_pipeline.packing.limits import limited
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from experiments import grid as grids
from experiments.grid import BASELINE, FACTS, SHOWN, Grid
from experiments.run import PREDICTIONS, ROW

Row = dict[str, Any]
ROWS, SUMMARY = "study_rows.jsonl.xz", "study.json"
#: Columns that make trainings the same work, beside their paradigm, k and fixes.
SAME_WORK = ("dataset", "n", "delay", "model", "row_length")


@dataclass(frozen=True)
class Line:
    """Rows that differ in their seed only: a line of a table."""

    rows: tuple[Row, ...]

    def __getitem__(self, column: str) -> Any:
        return self.rows[0].get(column)

    def values(self, column: str) -> list[Any]:
        return [row[column] for row in self.rows if row.get(column) is not None]

    def mean(self, column: str) -> float | None:
        found = self.values(column)
        return statistics.fmean(found) if found else None


def lines(rows: Iterable[Row]) -> list[Line]:
    """A line for each configuration, of all its seeds, in the rows' order; failed rows left out."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if "error" not in row:
            found.setdefault(identity(row, "seed"), []).append(row)
    return [Line(tuple(same)) for same in found.values()]


def identity(row: Row, ignored: str) -> tuple[Any, ...]:
    """The columns that tell a row apart, less one of them."""
    return tuple(row.get(fact) for fact in SHOWN if fact != ignored)


def home(row: Row) -> str:
    """The folder of a row's log; a row of before there were delays has none."""
    return grids.home(row["dataset"], row.get("delay"))


def of_group(grid: Grid, rows: Iterable[Row], name: str) -> list[Row]:
    """The rows of a group, of models of other kinds too; a run may belong to several."""
    members = {run.digest for run in grid.runs if name in run.groups}
    expanded = () if name in grid.others else names()
    return [
        row for row in rows if row["config"] in members or (row["group"] == name and row["paradigm"] not in expanded)
    ]


def read(grid: Grid) -> list[Row]:
    """The rows of the results; none where there is no file."""
    path = grid.beside(grid.results) / ROWS
    if not path.is_file():
        return []
    with lzma.open(path, "rt", encoding="utf-8") as lines_of:
        return [json.loads(line) for line in lines_of]


def save(grid: Grid, rows: Sequence[Row]) -> None:
    """Replace the results by these rows and their summary. Equal rows are equal bytes."""
    folder = grid.beside(grid.results)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{ROWS}.{os.getpid()}"
    aside.write_bytes(lzma.compress("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()))
    aside.replace(folder / ROWS)
    said = ",\n".join(json.dumps(line, ensure_ascii=False) for line in summary(rows))
    artifacts.write_text(folder / SUMMARY, f"[\n{said}\n]\n")


def summary(rows: Sequence[Row]) -> Iterator[Row]:
    """A row for each evaluated or timed configuration: means over its seeds. Seconds are those of :func:`timed`."""
    digits = {"auc": 6, "auc_streaming": 6, "log_loss": 6, "train_seconds": 3, "targets_per_second": 1}
    for line in lines(row | timed(row, rows) for row in rows if row["measure"] != "validation"):
        means = {name: line.mean(name) for name in digits}
        yield {
            **{fact: line[fact] for fact in ("dataset", "split", "group", "paradigm", *FACTS) if fact != "share"},
            **({} if line["share"] is None else {"share": line["share"]}),
            "seed": line.values("seed"),
            **{name: None if mean is None else round(mean, digits[name]) for name, mean in means.items()},
            **{fact: ", ".join(sorted(set(line.values(fact)))) for fact in ("hardware", "commit", "command")},
        }


def gather(grid: Grid, work: Path) -> list[Row]:
    """The rows of the results and of the runs' folders, in the grid's order; the former where both have one.

    A run's group and variants are called as the grid calls them today. Rows of runs that it does not declare are left
    out; those of other kinds of models stay. Raises InputError where rows of a log come from different data.
    """
    found = {row["config"]: row for row in read(grid)}
    for path in sorted(work.glob(f"*/runs/*/{ROW}")):
        row = json.loads(path.read_text(encoding="utf-8"))
        if "error" in found.setdefault(row["config"], row):
            found[row["config"]] = row
    others = sorted(
        (row for row in found.values() if row["paradigm"] not in names()),
        key=lambda row: (row["dataset"], row["paradigm"], row["n"], row.get("delay") or 0, row["seed"]),
    )
    rows = [found[run.digest] | run.facts() for run in grid.runs if run.digest in found] + others
    data: dict[str, str | None] = {}
    for row in rows:
        if data.setdefault(home(row), row.get("data")) != row.get("data"):
            raise InputError(
                f"{grid.beside(grid.results) / ROWS}: rows of {home(row)} come from different data"
                f" ({data[home(row)]} and {row.get('data')}): remove those of the one that is no longer there"
            )
    return rows


def derive(grid: Grid, rows: Sequence[Row], work: Path) -> None:
    """Fill in the columns that compare rows: differences of AUC to the sliding window of equal epochs and seed, to that
    of equal seconds, and to the same without fixes; ``speedup``, ``fewer_tokens`` and ``floors``.

    Cost: a second for each row of 100,000 targets whose pairs are new.
    """
    runs = {run.digest: run for run in grid.runs}
    known = {row["config"]: row for row in rows if "error" not in row}
    plain = {identity(row, "fixes"): row for row in known.values() if not row["fixes"]}
    usual, equal_seconds, unfixed = {}, {}, {}
    for config, row in known.items():
        run = runs.get(config)
        usual[config] = known.get((run.against if run else window_of_recipe(grid, row, known.values())) or "")
        equal_seconds[config] = known.get((run and run.against_seconds) or "")
        unfixed[config] = plain.get(identity(row, "fixes")) if row["fixes"] else None
        method = row["paradigm"] in names() and row["paradigm"] != BASELINE
        row["speedup"] = speedup(row, usual[config], known.values()) if method else None
        row["fewer_tokens"] = fewer_tokens(row, known.values()) if method else None
    scores = cache(lambda config: resampled(known[config], work))
    for line in lines(known.values()):
        differences(line, "auc_difference", usual, scores)
        differences(line, "auc_difference_equal_seconds", equal_seconds, scores)
        differences(line, "auc_difference_unfixed", unfixed, scores)
    _floors(grid, list(known.values()), work)


def window_of_recipe(grid: Grid, row: Row, rows: Iterable[Row]) -> str | None:
    """The sliding window that a model of another kind is compared with: the recipe's, of its seed where there is."""
    if row["dataset"] not in grid.data_sets:
        return None
    recipe = grid.config(row["dataset"])
    sought = {
        "paradigm": BASELINE, "measure": "quality", "fixes": "", "model": "", "epochs": recipe.training.epochs,
        "row_length": recipe.packing.row_length, "n": row["n"],
    }  # fmt: skip
    alike = (other for other in rows if home(other) == home(row) and sought.items() <= other.items())
    usual = sorted(alike, key=lambda other: other["seed"] != row["seed"])
    return usual[0]["config"] if usual else None


def alone(row: Row) -> bool:
    """Whether it was trained with nothing beside it."""
    return row.get("workers") == 1


def seconds(row: Row, rows: Iterable[Row]) -> float | None:
    """Training seconds with nothing beside it: the row's own, or its targets at the pace of the same work; None where
    nobody measured it."""
    if alone(row) and row.get("train_seconds") is not None:
        return row["train_seconds"]
    found = measured(row, rows)[0]
    return row["targets"] / _pace(found) if found and row.get("targets") else None


def mean_seconds(line: Line, rows: Iterable[Row]) -> float | None:
    known = [found for row in line.rows if (found := seconds(row, rows)) is not None]
    return statistics.fmean(known) if known else None


def timed(row: Row, rows: Iterable[Row]) -> Row:
    """``train_seconds`` and speeds of a row that had others beside it, by :func:`seconds`; nothing for another row."""
    if alone(row) or "error" in row:
        return {}
    took = seconds(row, rows)
    speeds = {f"{what}_per_second": round(row[what] / took, 1) if took else None for what in ("targets", "tokens")}
    return {"train_seconds": round(took, 3) if took else None, **speeds}


def speedup(row: Row, against: Row | None, rows: Iterable[Row]) -> float | None:
    """Targets a second over the sliding window's, both measured alone on one machine: of the row and of ``against``
    where both were, else of other trainings of the same work."""
    if against is not None and alone(against) and alone(row) and against["hardware"] == row["hardware"]:
        return round(row["targets_per_second"] / against["targets_per_second"], 3)
    own, window = measured(row, rows)
    return round(_pace(own) / _pace(window), 3) if own and window else None


def fewer_tokens(row: Row, rows: Iterable[Row]) -> float | None:
    """The sliding window's tokens a target over the row's: the bound of a speed-up where time goes with tokens."""
    same = ("dataset", "n", "delay")
    found = [r for r in rows if r["paradigm"] == BASELINE and all(r.get(key) == row.get(key) for key in same)]
    return round(found[-1]["tokens_per_target"] / row["tokens_per_target"], 3) if found else None


def measured(row: Row, rows: Iterable[Row]) -> tuple[Line | None, Line | None]:
    """Trainings of the row's work with nothing beside them, and of its sliding window, all on one machine.

    That is the row's own if the sliding window was measured there, so that no line has another machine's seconds beside
    this machine's sliding window; else one that has both; else another.
    """
    rows, here = list(rows), row.get("hardware", "")
    own = _by_machine(row, rows, row["paradigm"], row["k"], row["fixes"])
    windows = _by_machine(row, rows, BASELINE, 1, "")
    places = [here] if here in windows else sorted(own, key=lambda machine: (machine not in windows, machine != here))
    place = next((machine for machine in places if machine in own), "")
    return own.get(place), windows.get(place)


def _by_machine(row: Row, rows: Iterable[Row], paradigm: str, k: int | str, fixes: str) -> dict[str, Line]:
    sought = {"paradigm": paradigm, "k": k, "fixes": fixes, "workers": 1} | {key: row.get(key) for key in SAME_WORK}
    found: dict[str, list[Row]] = {}
    for other in rows:
        if all(other.get(key) == value for key, value in sought.items()) and other.get("steps") != 0:
            found.setdefault(other["hardware"], []).append(other)
    return {machine: Line(tuple(same)) for machine, same in found.items()}


def _pace(trainings: Line) -> float:
    return statistics.median(trainings.values("targets_per_second"))


def differences(
    line: Line, column: str, against: Mapping[str, Row | None], scores: Callable[[str], tuple[Array, Array] | None]
) -> None:
    """Fill in ``column``: AUCs of a line's rows less those of the rows they are compared with, ``against``, with the
    paired interval of each and of their mean.

    ``scores`` returns :func:`resampled` of a row's config. Intervals found before stand while all the AUCs do, for the
    scores need not be on this machine.
    """
    pairs: list[tuple[Row, Row]] = []
    for row in line.rows:
        other = against[row["config"]]
        if other is None or other is row or row.get("auc") is None or other.get("auc") is None:
            row[column] = None
        else:
            pairs.append((row, other))
    configs = [row["config"] for row, _ in pairs]
    wanted = [{"against": o["config"], "aucs": [row["auc"], o["auc"]], "seeds": configs} for row, o in pairs]
    olds = [row.get(column) or {} for row, _ in pairs]
    if all(want.items() <= old.items() and old["low"] is not None for want, old in zip(wanted, olds, strict=True)):
        return
    settings = Config().evaluation
    samples = [_paired(scores(row["config"]), scores(other["config"])) for row, other in pairs]
    known = [each for each in samples if each is not None]
    together = len(known) == len(pairs) > 1
    both = interval(over_seeds(np.stack(known), settings.seed), settings.confidence) if together else None
    for (row, other), want, old, each in zip(pairs, wanted, olds, samples, strict=True):
        own = _ends(interval(each, settings.confidence) if each is not None else None)
        if each is None and old.get("aucs") == want["aucs"]:  # found where the scores were
            own = {end: old[end] for end in own}
        row[column] = want | {"mean": round(row["auc"] - other["auc"], 6)} | own | _ends(both, "seeds_")


def _ends(found: Interval | None, prefix: str = "") -> dict[str, float | None]:
    low, high = (None, None) if found is None else (round(found.low, 6), round(found.high, 6))
    return {f"{prefix}low": low, f"{prefix}high": high}


def resampled(row: Row, work: Path) -> tuple[Array, Array] | None:
    """The evaluated rows of the log (N,), and AUC (samples,) over resamples of users; None where this machine does not
    have the scores that the row was made from."""
    path = work / home(row) / "runs" / row["config"] / PREDICTIONS
    if not path.is_file():
        return None
    table = pq.read_table(path)
    target, user, label, score = (table[name].to_numpy() for name in ("row", "user", "label", "probability"))
    found = metrics.auc(label, score)
    if found is None or abs(found - row["auc"]) >= 1e-4:
        return None
    settings = Config().evaluation
    return target, Users(user, settings.bootstrap_samples, settings.seed).auc(label, score)


def _paired(own: tuple[Array, Array] | None, other: tuple[Array, Array] | None) -> Array | None:
    """(samples,) differences of two rows that were evaluated on the same targets."""
    if own is None or other is None or not np.array_equal(own[0], other[0]):
        return None
    return own[1] - other[1]


def _floors(grid: Grid, rows: list[Row], work: Path) -> None:
    """Give every row the floors of its log, delay, n and evaluated split; taken from a row that has them."""
    known: dict[tuple[Any, ...], Mapping[str, float]] = {}
    for row in sorted(rows, key=lambda row: not row.get("floors")):
        trial = row["measure"] == "validation"
        key = (home(row), row.get("data"), row["n"], row.get("share"), trial)
        if row.get("floors"):
            known.setdefault(key, row["floors"])
        elif key not in known and row["dataset"] in grid.data_sets:
            config = grid.config(row["dataset"], {"packing": {"target_share": row.get("share") or 1.0}})
            split = "validation" if trial else config.evaluation.split
            known[key] = _floor_aucs(config, Paths(work / home(row)), row["n"], split)
        row["floors"] = known.get(key) or None


def _floor_aucs(config: Config, paths: Paths, n: int, split: str) -> dict[str, float]:
    if not (paths.events / artifacts.MANIFEST).is_file():
        return {}
    log = interactions.read(paths, config.split.min_history)
    log = replace(log, train=limited(log.train, log.position, config.packing))
    evaluated = np.asarray(log.table["split"].to_pylist()) == split
    targets = np.flatnonzero(evaluated & (log.request >= config.split.min_history))
    found = {name: metrics.auc(log.label[targets], score) for name, score in floors(log, targets, n).items()}
    return {name: round(auc, 6) for name, auc in found.items() if auc is not None}
