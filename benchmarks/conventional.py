"""What the language model buys: usual CTR models on the same split, the same targets and as many interactions.

    python benchmarks/conventional.py --data-sets ml-latest-small ml-1m movietweetings-100k --seeds 1 2 3
    python benchmarks/conventional.py --data-sets ml-1m --models gbdt --context 50

`gbdt`: gradient-boosted trees (scikit-learn) on counted features; `din`: a small deep interest network. The logs are
those that `dti study --prepare` has tokenised. Rows and predictions go to where the study keeps its own: `dti study
--report` puts them into its tables. A run that is there, of the same data, is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, nothing installed

import din
from counted_features import features

from dti_pipeline import artifacts, lineage
from dti_pipeline.evaluation import interactions, metrics
from dti_pipeline.evaluation.interactions import Array, Interactions
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from dti_pipeline.study import grid as grids
from dti_pipeline.study import log as logs
from dti_pipeline.study.one import ROW, keep_predictions

ROOT = Path(__file__).resolve().parent.parent
#: Trees are added until the validation AUC says stop; the rest is scikit-learn's own.
TREES = {
    "max_iter": 400,
    "learning_rate": 0.05,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 100,
    "l2_regularization": 1.0,
}


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--data-sets", nargs="+", required=True)
    parse.add_argument("--models", nargs="+", default=["gbdt", "din"], choices=["gbdt", "din"])
    parse.add_argument("--seeds", nargs="+", type=int, default=[1])
    parse.add_argument("--context", type=int, default=20, help="interactions, n (default: %(default)s)")
    parse.add_argument("--grid", type=Path, default=ROOT / "benchmarks" / "study.yaml")
    parse.add_argument("--work", type=Path, default=Paths.from_env().study)
    options = parse.parse_args()
    grid = grids.load(options.grid)
    for data_set in options.data_sets:
        for model in options.models:
            for seed in options.seeds if model == "din" else options.seeds[:1]:  # of trees only the bins are drawn
                row = run(grid, options.work, data_set, model, seed, options.context)
                shown = {key: row[key] for key in ("auc", "log_loss", "validation_auc", "train_seconds")}
                print(data_set, model, seed, shown, flush=True)


def run(grid: grids.Grid, work: Path, data_set: str, model: str, seed: int, n: int) -> dict[str, Any]:
    """The row of one model; made where it is not there yet."""
    parameters = TREES if model == "gbdt" else dataclasses.asdict(din.Settings())
    config = hashlib.md5(json.dumps([data_set, model, n, seed, parameters], sort_keys=True).encode()).hexdigest()[:12]
    own = work / data_set / "runs" / config
    data = logs.digest(work / data_set)
    if (own / ROW).is_file() and (made := json.loads((own / ROW).read_text()))["data"] == data:
        return made
    settings = grid.config(data_set)
    paths = Paths(work / data_set)
    log, store = interactions.read(paths, settings.split.min_history), TokenStore.open(paths.tokens)
    split = np.asarray(log.table["split"].to_pylist())
    eligible = log.position >= settings.split.min_history
    targets = {name: np.flatnonzero((split == name) & eligible) for name in ("train", "validation", "test")}
    if model == "gbdt":
        fitted = boosted(log, store, targets, n, seed)
    else:
        fitted = din.fit(log, store, targets, n, seed, din.Settings())
    test = targets["test"]
    label, user, score = log.label[test], log.user[test], fitted.probability
    seen = len(targets["train"]) * (fitted.trained if model == "din" else 1)
    row = {
        "dataset": data_set, "split": settings.split.rule, "group": "conventional", "paradigm": model, "k": 1, "n": n,
        "fixes": "", "model": "", "epochs": None, "stopped_after": fitted.kept, "seed": seed,
        "max_targets": None, "measure": "quality", "config": config,
        "command": f"python benchmarks/conventional.py --data-sets {data_set} --models {model} --seeds {seed}"
        f" --context {n}",
        "workers": 1, "data": data, "commit": str(lineage.commit() or "") or None,
        "hardware": lineage.hardware([]),
        "auc": metrics.auc(label, score), "auc_streaming": None, "log_loss": metrics.log_loss(label, score),
        "gauc": metrics.group_auc(label, score, user).value,
        "auc_by_history": {
            part.bucket: part.auc
            for part in metrics.slices(label, score, log.position[test], metrics.HISTORY_BUCKETS)
        },
        "validation_auc": fitted.validation_auc, "train_seconds": round(fitted.seconds, 2), "targets": seen,
        "targets_per_second": round(seen / fitted.seconds, 1), "tokens_per_second": None, "tokens": None,
        "parameters": fitted.parameters, "test_targets": len(test), "test_users": len(np.unique(user)),
    }  # fmt: skip
    keep_predictions(own, test, user, label, score)
    artifacts.write_json(own / ROW, row)
    return row


def boosted(log: Interactions, store: TokenStore, targets: dict[str, Array], n: int, seed: int) -> din.Fitted:
    """Trees on counted features, as many of them as do best on the validation targets."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    begun = time.perf_counter()
    x, y = features(log, store, n), log.label
    model = HistGradientBoostingClassifier(**TREES, early_stopping=False, random_state=seed)
    model.fit(x[targets["train"]], y[targets["train"]])
    seconds = time.perf_counter() - begun
    held = targets["validation"]
    aucs = [metrics.auc(y[held], p[:, 1]) for p in model.staged_predict_proba(x[held])]
    trees = int(np.argmax(aucs)) + 1
    probability = next(p for i, p in enumerate(model.staged_predict_proba(x[targets["test"]]), 1) if i == trees)[:, 1]
    nodes = sum(len(tree.nodes) for step in model._predictors[:trees] for tree in step)
    return din.Fitted(probability, float(aucs[trees - 1]), trees, len(aucs), seconds, nodes)


if __name__ == "__main__":
    main()
