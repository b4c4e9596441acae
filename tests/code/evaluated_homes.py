"""A home with evaluations whose figures are known, for the tests of comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline import config as configuration
from dti_pipeline.config import Config
from dti_pipeline.evaluation.evaluate import measure
from dti_pipeline.evaluation.report import Evaluation
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from tests import reports

USERS, EACH, MIN_HISTORY = 120, 30, 5
CONFIG = configuration.load(Path("no such file"), ["evaluation.bootstrap_samples=100"])


def project_at(home: Paths) -> Paths:
    """A home with events, and the manifests of everything that stands between them and an evaluation."""
    write_events(home, CONFIG, seed=0)
    for paradigm in names():
        k = 1 if paradigm == "sliding_window" else 50
        with artifacts.publish(home.shards(paradigm), "pack", CONFIG.sections("packing", "split")) as draft:
            draft.report = replace(reports.PACK, paradigm=paradigm, targets_per_prompt=k)
        if k == 1:
            write_model(home, paradigm, seconds=200.0, tokens=1_080_000)
        else:
            write_model(home, paradigm, seconds=20.0)
    with artifacts.publish(home.tokens, "tokenize"):
        pass
    return home


def write_events(paths: Paths, config: Config, seed: int) -> None:
    """A log whose probabilities are known, in the form that ingestion publishes, with the truth beside it."""
    generator = np.random.default_rng(seed)
    user, position = np.repeat(np.arange(USERS), EACH), np.tile(np.arange(EACH), USERS)
    item = generator.integers(0, 40, len(user))
    logit = generator.normal(0, 1, USERS)[user] + generator.normal(0, 1, 40)[item] + generator.normal(0, 3, len(user))
    probability = 1 / (1 + np.exp(-logit))
    log = pa.table(
        {
            "user_id": [str(u) for u in user],
            "item_id": [str(i) for i in item],
            "timestamp": 1_600_000_000 + position * 100_000 + user,
            "label": (generator.random(len(user)) < probability).astype(np.int8),
            "split": np.where(position < 24, "train", np.where(position < 27, "validation", "test")),
            **dict.fromkeys(("position", "request", "known"), position.astype(np.int32)),
        }
    )
    with artifacts.publish(paths.events, "ingest", config.sections("events", "split")) as draft:
        pq.write_table(log, draft.path / "interactions.parquet")
    paths.synthetic.mkdir(parents=True, exist_ok=True)
    lines = zip(*(log[c].to_pylist() for c in ("user_id", "item_id", "timestamp")), probability, strict=True)
    text = "user_id,item_id,timestamp,probability\n" + "".join(f"{u},{i},{t},{p:.6f}\n" for u, i, t, p in lines)
    (paths.synthetic / "truth.csv").write_text(text)


def write_model(paths: Paths, paradigm: str, seconds: float, **changed: Any) -> None:
    with artifacts.publish(paths.model(paradigm), "train") as draft:
        times = {"train_seconds": seconds, "processor_seconds": seconds}
        draft.report = replace(reports.TRAIN, paradigm=paradigm, **(times | changed))
        (draft.path / "history.csv").write_text(
            "targets_seen,train_seconds,step,loss,learning_rate,val_auc,val_log_loss\n"
            f"500,{seconds / 4},10,0.7,0.001,,\n"
            f"1000,{seconds / 2},20,0.65,0.001,0.66,0.63\n"
            f"2000,{seconds},40,0.6,0.0001,0.72,0.61\n"
        )


def predictions(paths: Paths, noise: float, seed: int = 1, split: str = "test") -> pa.Table:
    """Scores of the split's targets: the truth with noise on its logit."""
    log = pq.read_table(paths.events / "interactions.parquet")
    rows = np.flatnonzero(np.array(log["split"].to_pylist()) == split)
    lines = (paths.synthetic / "truth.csv").read_text().splitlines()[1:]
    truth = np.array([float(line.split(",")[3]) for line in lines])[rows].clip(0.001, 0.999)
    generator = np.random.default_rng(seed)
    logit = np.log(truth / (1 - truth))
    served, streaming = (1 / (1 + np.exp(-logit - generator.normal(0, noise, len(rows)))) for _ in range(2))
    return pa.table(
        {
            "row": rows,
            "label": log["label"].take(rows),
            "probability": served,
            "probability_streaming": streaming,
        }
    )


def evaluated(paths: Paths, paradigm: str, noise: float = 0.5, config: Config = CONFIG, **more: Any) -> Evaluation:
    return measure(config, paths, paradigm, predictions(paths, noise, **more), {"seconds_sliding_window": 1.0})
