"""Shuffled labels leave nothing to learn, and the histories of other people no more than the items' rates: an AUC above
that would mean that a label reached its own target on some way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dti_pipeline import pipeline
from dti_pipeline.config import Config, from_plain
from dti_pipeline.evaluation import floors, interactions, metrics
from dti_pipeline.paths import Paths

PARAMS = {
    "synth": {"users": 100, "items": 40, "interactions_per_user": 40, "defects": 0},
    "split": {"test_share": 0.3},
    "validation": {"required": False},
    "packing": {"context": 8, "targets": 20, "row_length": 256},
    "model": {"hidden_size": 32, "heads": 2, "kv_heads": 2, "intermediate_size": 64, "layers": 1},
    "training": {
        "device": "cpu", "epochs": 5, "targets_per_step": 64, "tokens_per_batch": 4096, "evaluations": 0,
        "learning_rate": 0.004,
    },
    "evaluation": {"bootstrap_samples": 10},
    "tracking": {"enabled": False},
}  # fmt: skip
#: Column of the raw log that is shuffled over all of its rows.
SHUFFLED = {"nothing": None, "labels": "rating", "histories": "user_id"}


def judged(home: Path, paradigm: str, column: str | None) -> tuple[float, float, int]:
    """AUC of a model and of the best floor on the test targets, and how many these are."""
    config, paths = from_plain(Config, PARAMS), Paths(home)
    pipeline.BY_NAME["synth"].run(config, paths)
    if column is not None:
        _shuffle(paths.synthetic / "ratings.csv", column)
    for stage in ("ingest", "tokenize"):
        pipeline.BY_NAME[stage].run(config, paths)
    for stage in ("pack", "train", "evaluate"):
        report = pipeline.BY_NAME[stage].run(config, paths, paradigm)
    rows = pq.read_table(paths.evaluation(paradigm) / "predictions.parquet")["row"].to_numpy()
    log = interactions.read(paths, config.split.min_history)
    scores = floors.floors(log, rows, config.packing.context)
    return report.auc, max(metrics.auc(log.label[rows], one) or 0 for one in scores.values()), len(rows)


def _shuffle(path: Path, column: str) -> None:
    head, *lines = path.read_text().splitlines()
    rows, at = [line.split(",") for line in lines], head.split(",").index(column)
    values = [row[at] for row in rows]
    for row, other in zip(rows, np.random.default_rng(1).permutation(len(rows)).tolist(), strict=True):
        row[at] = values[other]
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")


@pytest.mark.parametrize(
    "paradigm",
    [
        pytest.param("dti", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("sliding_window", "dti_growing", "dti_isolated")),
    ],
)
def test_shuffled_labels_and_histories_fall_to_what_is_left(tmp_path: Path, paradigm: str) -> None:
    found = {kind: judged(tmp_path / kind, paradigm, column) for kind, column in SHUFFLED.items()}
    learnt, _, count = found["nothing"]
    noise = (3 / count) ** 0.5  # three standard errors of an AUC of 0.5 over as many clicks as skips
    assert noise < 0.07
    assert learnt > 0.75, "there is something to learn while nothing is shuffled"
    assert abs(found["labels"][0] - 0.5) < noise
    assert found["histories"][0] < max(0.5, found["histories"][1]) + noise
