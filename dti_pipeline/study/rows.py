"""The results: what single runs found, gathered, held against their sliding window, and written as one file.

A row has the columns of :meth:`Run.facts`, what training and judging found, and what can only be said beside other
rows: ``auc_difference`` (to the sliding window of equal epochs and seed, paired, with its interval, and that of the
mean over all seeds), ``auc_difference_equal_seconds``, ``auc_difference_unfixed`` (to the same without fixes),
``speedup``, ``fewer_tokens`` and ``floors``. A run that failed has ``error``. The row of a trial
(``measure: validation``) has nothing of test targets: ``validation_auc``, ``learning`` (training seconds and AUC of the
validation targets at each point of the curve), and floors of the validation targets.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation import interactions, metrics
from dti_pipeline.evaluation.bootstrap import Array, Interval, Users, interval, over_seeds
from dti_pipeline.evaluation.floors import floors
from dti_pipeline.packing.pack import limit
from dti_pipeline.paths import PARADIGMS, Paths
from dti_pipeline.study.grid import BASELINE, SHOWN, Grid
from dti_pipeline.study.one import PREDICTIONS, ROW

Row = dict[str, Any]
#: What makes trainings the same work, beside their paradigm, k and fixes. Seconds are those of one machine.
SAME_WORK = ("dataset", "n", "model", "row_length")


class Pace(NamedTuple):
    """How fast trainings are that have a GPU, or the CPU, to themselves."""

    targets_per_second: float  # their median
    hardware: str
    commits: tuple[str, ...]


def read(grid: Grid) -> list[Row]:
    """The results file; no rows where there is none."""
    path = grid.beside(grid.results)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def failed(path: Path) -> bool:
    """Whether a run's own row is there and says that it failed."""
    return path.is_file() and "error" in json.loads(path.read_text(encoding="utf-8"))


def gather(grid: Grid, work: Path) -> list[Row]:
    """The file's rows and those of the runs' folders, in the grid's order; the file's own row stands where both have
    one. A run's group and its variant's name are what the grid calls them today. Rows of runs that the grid does not
    declare are left out; those of models that are not this pipeline's stay.

    Raises InputError where the rows of a log come from different data.
    """
    found = {row["config"]: row for row in read(grid)}
    for path in sorted(work.glob(f"*/runs/*/{ROW}")):
        row = json.loads(path.read_text(encoding="utf-8"))
        if "error" in found.setdefault(row["config"], row):
            found[row["config"]] = row
    others = sorted(
        (row for row in found.values() if row["paradigm"] not in PARADIGMS),
        key=lambda row: (row["dataset"], row["paradigm"], row["n"], row["seed"]),
    )
    rows = [found[run.digest] | run.facts() for run in grid.runs if run.digest in found] + others
    for row in rows:
        if other := next((r for r in rows if r["dataset"] == row["dataset"] and data(r) != data(row)), None):
            raise InputError(
                f"{grid.beside(grid.results)}: rows of {row['dataset']} come from different data ({data(row)} and"
                f" {data(other)}): remove those of the one that is no longer there"
            )
    return rows


def data(row: Row) -> str | None:
    """Digest of the data behind a row."""
    return row.get("data")


def write(grid: Grid, rows: Iterable[Row]) -> None:
    """Replace the results file by these rows, one a line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    artifacts.write_text(grid.beside(grid.results), "[\n" + ",\n".join(lines) + "\n]\n")


def derive(grid: Grid, rows: list[Row], work: Path) -> None:
    """Fill in what stands beside other rows. Cost: a second for each row of 100,000 targets whose pairs are new."""
    runs = {run.digest: run for run in grid.runs}
    known = {row["config"]: row for row in rows if "error" not in row}
    usual, equal_seconds, unfixed = {}, {}, {}
    plain = {_but(row, "fixes"): row for row in known.values() if not row["fixes"]}
    for row in known.values():
        run = runs.get(row["config"])
        usual[row["config"]] = known.get((run.against if run else _usual(grid, row, known.values())) or "")
        equal_seconds[row["config"]] = known.get((run and run.against_seconds) or "")
        unfixed[row["config"]] = plain.get(_but(row, "fixes")) if row["fixes"] else None
        _speed(row, usual[row["config"]], list(known.values()))
    resampled = cache(lambda config: _resampled(known[config], work))
    for seeds in of_seeds(known.values()):
        _differences(seeds, "auc_difference", usual, resampled)
        _differences(seeds, "auc_difference_equal_seconds", equal_seconds, resampled)
        _differences(seeds, "auc_difference_unfixed", unfixed, resampled)
    _floors(grid, list(known.values()), work)


def _but(row: Row, ignored: str) -> tuple[Any, ...]:
    """What tells a row apart, less one of it."""
    return tuple(row.get(fact) for fact in SHOWN if fact != ignored)


def of_seeds(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows without an error, those that differ in nothing but their seed together, in their order."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if "error" not in row:
            found.setdefault(_but(row, "seed"), []).append(row)
    return list(found.values())


def seconds(row: Row, rows: Iterable[Row]) -> float | None:
    """Training seconds with nothing beside it: the row's own, or its targets at the speed that another row of the same
    work measured alone; None where nobody did."""
    if alone(row) and row.get("train_seconds") is not None:
        return row["train_seconds"]
    found = pace(row, rows)
    return row["targets"] / found.targets_per_second if found and row.get("targets") else None


def pace(row: Row, rows: Iterable[Row]) -> Pace | None:
    """That of the same work, where it was measured alone, and the sliding window beside it if it was anywhere.

    On the row's own machine if the sliding window was measured there: a line does not take another machine's seconds
    beside a sliding window that has this one's. Else on another.
    """
    return _pair(row, list(rows))[0]


def alone(row: Row) -> bool:
    """Whether it was trained with nothing beside it."""
    return row.get("workers") == 1


def _speed(row: Row, against: Row | None, rows: list[Row]) -> None:
    """Targets a second over the sliding window's, both measured alone on the same cut of the log and machine; tokens,
    likewise.

    Of the row and its own sliding window where both were; else of other trainings of the same work.
    """
    row["speedup"] = row["fewer_tokens"] = None
    if row["paradigm"] not in PARADIGMS or row["paradigm"] == BASELINE:
        return
    if against is not None and alone(against) and alone(row) and against["hardware"] == row["hardware"]:
        row["speedup"] = round(row["targets_per_second"] / against["targets_per_second"], 3)
    else:
        own, beside = _pair(row, rows)
        if own and beside:
            row["speedup"] = round(own.targets_per_second / beside.targets_per_second, 3)
    for other in rows:
        same = all(other.get(key) == row.get(key) for key in ("dataset", "n", "max_targets"))
        if other["paradigm"] == BASELINE and same:
            row["fewer_tokens"] = round(other["tokens_per_target"] / row["tokens_per_target"], 3)


def _pair(row: Row, rows: list[Row]) -> tuple[Pace | None, Pace | None]:
    """The pace of the row's work, and the sliding window's on the same cut and machine."""
    found, base = _paces(row, rows, row["paradigm"], row["k"], row["fixes"]), _paces(row, rows, BASELINE, 1, "")
    if (row.get("max_targets"), row.get("hardware")) in base:
        found = {where: pace for where, pace in found.items() if where[1] == row.get("hardware")}
    where = next((where for where in found if where in base), next(iter(found), None))
    return (None, None) if where is None else (found[where], base.get(where))


def _paces(
    row: Row, rows: Iterable[Row], paradigm: str, k: int | str, fixes: str
) -> dict[tuple[int | None, str], Pace]:
    """Of the trainings of the same work, by the cut of the log and the machine; the row's own cut first, and its own
    machine."""
    found: dict[tuple[int | None, str], list[Row]] = {}
    for other in rows:
        same = (other["paradigm"], other["k"], other["fixes"]) == (paradigm, k, fixes)
        if same and alone(other) and all(other.get(key) == row.get(key) for key in SAME_WORK):
            found.setdefault((other["max_targets"], other["hardware"]), []).append(other)
    order = sorted(found, key=lambda where: (where[0] != row.get("max_targets"), where[1] != row.get("hardware")))
    return {
        where: Pace(
            statistics.median(other["targets_per_second"] for other in found[where]),
            where[1],
            tuple(sorted({other["commit"] for other in found[where]})),
        )
        for where in order
    }


def _usual(grid: Grid, row: Row, rows: Iterable[Row]) -> str | None:
    """The sliding window that a model of another kind is held against: the recipe's, of its seed where there is one."""
    if row["dataset"] not in grid.data_sets:
        return None
    recipe = grid.config(row["dataset"])
    sought = {
        "paradigm": BASELINE, "measure": "quality", "fixes": "", "model": "", "epochs": recipe.training.epochs,
        "row_length": recipe.packing.row_length, **{key: row.get(key) for key in ("dataset", "n", "max_targets")},
    }  # fmt: skip
    usual = [other for other in rows if sought.items() <= other.items()]
    same = [other for other in usual if other["seed"] == row["seed"]]
    return (same or usual)[0]["config"] if usual else None


def _differences(
    seeds: Sequence[Row],
    column: str,
    against: Mapping[str, Row | None],
    resampled: Callable[[str], tuple[Array, Array] | None],
) -> None:
    """AUCs of one line's rows less those of the rows that they are held ``against``; ``resampled`` finds what
    :func:`_resampled` returns for a row's config. What was found before, with its intervals, stands while all the AUCs
    do."""
    pairs: list[tuple[Row, Row]] = []
    for row in seeds:
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
    samples = [_paired(resampled(row["config"]), resampled(other["config"])) for row, other in pairs]
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


def _resampled(row: Row, work: Path) -> tuple[Array, Array] | None:
    """The rows of the log that were judged, and (samples,) AUC over resamples of users; None where the scores are not
    on this machine."""
    found = _predictions(row, work)
    if found is None:
        return None
    settings = Config().evaluation
    users = Users(found["user"], settings.bootstrap_samples, settings.seed)
    return found["row"], users.auc(found["label"], found["probability"])


def _paired(own: tuple[Array, Array] | None, other: tuple[Array, Array] | None) -> Array | None:
    """(samples,) differences of two rows that were judged on the same targets."""
    if own is None or other is None or not np.array_equal(own[0], other[0]):
        return None
    return own[1] - other[1]


def _predictions(row: Row, work: Path) -> dict[str, Any] | None:
    """A run's scores, where this machine has those that the row was made from."""
    path = work / row["dataset"] / "runs" / row["config"] / PREDICTIONS
    if not path.is_file():
        return None
    table = pq.read_table(path, columns=["row", "user", "label", "probability"])
    columns = {name: table[name].to_numpy() for name in table.column_names}
    found = metrics.auc(columns["label"], columns["probability"])
    return columns if found is not None and abs(found - row["auc"]) < 1e-4 else None


def _floors(grid: Grid, rows: list[Row], work: Path) -> None:
    """The cost-free floors of each log, n, cut and judged split, on every row; taken from a row that has them."""
    known: dict[tuple[Any, ...], Mapping[str, float]] = {}
    for row in sorted(rows, key=lambda row: not row.get("floors")):
        trial = row["measure"] == "validation"
        key = (row["dataset"], data(row), row["n"], row.get("max_targets"), trial)
        if row.get("floors"):
            known.setdefault(key, row["floors"])
        elif key not in known and row["dataset"] in grid.data_sets:
            config = grid.config(row["dataset"])
            judged = "validation" if trial else config.evaluation.split
            known[key] = _floor_aucs(config, Paths(work / row["dataset"]), row["n"], row.get("max_targets"), judged)
        row["floors"] = known.get(key) or None


def _floor_aucs(config: Config, paths: Paths, n: int, most: int | None, judged: str) -> dict[str, float]:
    if not (paths.events / artifacts.MANIFEST).is_file():
        return {}
    log = interactions.read(paths, config.split.min_history)
    if most is not None:
        log = replace(log, train=limit(log.train, log.position, most, config.packing.seed))
    split = np.asarray(log.table["split"].to_pylist())
    targets = np.flatnonzero((split == judged) & (log.position >= config.split.min_history))
    found = {name: metrics.auc(log.label[targets], score) for name, score in floors(log, targets, n).items()}
    return {name: round(auc, 6) for name, auc in found.items() if auc is not None}
