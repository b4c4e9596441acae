"""Does a language model give a better AUC than usual CTR models, on the same split, targets and interactions?

    python -m benchmarks.conventional --data-sets ml-latest-small ml-1m movietweetings-100k --seeds 1 2 3
    python -m benchmarks.conventional --data-sets ml-1m --models gbdt --context 50
    python -m benchmarks.conventional --data-sets collm-ml1m --group delays --delays none 60 600 3600 86400

`gbdt`: gradient-boosted trees (scikit-learn) on counted features; `din`: a small deep interest network. The logs are
those that `dti study --prepare` has tokenised. Rows and predictions go where the study keeps its own: `dti study
--report` puts them into its tables. A run whose row is there, of the same data, is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib import boosted, din
from benchmarks.lib.harness import ROOT
from dti_pipeline import artifacts, lineage
from dti_pipeline.evaluation import interactions, metrics
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from experiments import grid as grids
from experiments import logs
from experiments.run import ROW, keep_predictions

MODELS = {"gbdt": (boosted.fit, boosted.TREES), "din": (din.fit, dataclasses.asdict(din.Settings()))}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--data-sets", nargs="+", required=True)
    parse.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parse.add_argument("--seeds", nargs="+", type=int, default=[1])
    parse.add_argument("--context", type=int, default=20, help="interactions, n (default: %(default)s)")
    parse.add_argument(
        "--delays", nargs="+", type=lambda text: None if text == "none" else float(text), default=[None],
        help="seconds after which a label is known, or none: at once (default)",
    )  # fmt: skip
    parse.add_argument(
        "--group", default="conventional", help="of the study, whose tables show it (default: %(default)s)"
    )
    parse.add_argument("--workers", type=int, default=1, help="trainings at a time on the machine; seconds count of 1")
    parse.add_argument("--grid", type=Path, default=ROOT / "experiments" / "study.yaml")
    parse.add_argument("--work", type=Path, default=Paths.from_env().study)
    given = parse.parse_args()
    grid = grids.load(given.grid)
    for data_set, delay, model in itertools.product(given.data_sets, given.delays, given.models):
        for seed in given.seeds if model == "din" else given.seeds[:1]:  # of trees only the bins are drawn
            row = run(grid, given.work, data_set, model, seed, given.context, delay, given.group, given.workers)
            shown = {key: row[key] for key in ("auc", "log_loss", "validation_auc", "train_seconds")}
            print(grids.home(data_set, delay), model, seed, shown, flush=True)


def run(
    grid: grids.Grid, work: Path, data_set: str, model: str, seed: int, n: int, delay: float | None = None,
    group: str = "conventional", workers: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """The row of one model; made where it is not there yet."""
    fit, parameters = MODELS[model]
    named = [data_set, model, n, seed, parameters, *([] if delay is None else [delay])]
    config = hashlib.md5(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]
    home = work / grids.home(data_set, delay)
    own, data = home / "runs" / config, logs.digest(home)
    if (own / ROW).is_file() and (made := json.loads((own / ROW).read_text()))["data"] == data:
        return made
    settings = grid.config(data_set)
    paths = Paths(home)
    log, store = interactions.read(paths, settings.split.min_history), TokenStore.open(paths.tokens)
    split = np.asarray(log.table["split"].to_pylist())
    eligible = log.request >= settings.split.min_history
    targets = {name: np.flatnonzero((split == name) & eligible) for name in ("train", "validation", "test")}
    fitted = fit(log, store, targets, n, seed)
    test = targets["test"]
    label, user, score = log.label[test], log.user[test], fitted.probability
    seen = len(targets["train"]) * fitted.passes
    by_history = metrics.slices(label, score, log.position[test], metrics.HISTORY_BUCKETS)
    row = {
        "dataset": data_set, "split": settings.split.rule, "group": group, "paradigm": model, "k": 1, "n": n,
        "delay": delay, "fixes": "", "model": "", "epochs": None, "seed": seed, "measure": "quality", "config": config,
        "command": f"python -m benchmarks.conventional --data-sets {data_set} --models {model} --seeds {seed}"
        f" --context {n} --group {group}" + ("" if delay is None else f" --delays {delay:g}"),
        "workers": workers, "data": data, "commit": lineage.commit_name(),
        "hardware": lineage.hardware([]),
        "auc": metrics.auc(label, score), "auc_streaming": None, "log_loss": metrics.log_loss(label, score),
        "gauc": metrics.group_auc(label, score, user).value,
        "auc_by_history": {part.bucket: part.auc for part in by_history},
        "validation_auc": fitted.validation_auc, "train_seconds": round(fitted.seconds, 2), "targets": seen,
        "targets_per_second": round(seen / fitted.seconds, 1), "tokens_per_second": None, "tokens": None,
        "parameters": fitted.parameters, "test_targets": len(test), "test_users": len(np.unique(user)),
        "stopped_after": fitted.kept,
    }  # fmt: skip
    keep_predictions(own, test, user, label, score)
    artifacts.write_json(own / ROW, row)
    return row


if __name__ == "__main__":
    main()
