"""What bounds a model's AUC: cost-free floors, and for a synthetic log the probabilities its labels were drawn from.

The floors are logistic regressions on the logits of smoothed like-rates, fitted on training targets: the item's rate
alone; with the user's over the last n rows whose label is known (n = the prompts' context); with the user's over all
such rows. An item's rate counts training targets, without the row itself (leave one out); a user's counts rows of any
split.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.interactions import Array, Interactions
from dti_pipeline.paths import Paths

#: Rows at the training click rate that every rate starts from.
SMOOTHING = 5.0

FLOORS = ("item_rate", "item_and_user_rate", "item_and_user_rate_all_rows")


def floors(log: Interactions, rows: Array, context: int) -> dict[str, NDArray[np.float64]]:
    """Each floor's probabilities for the targets at ``rows`` (N,), by name. InputError without training targets of both
    classes."""
    labels = log.label[log.train]
    if len(np.unique(labels)) < 2:
        raise InputError(f"the floors need training targets of both classes: all {len(labels)} are of one class")
    prior = float(labels.mean())
    item, start = _item_rate(log, prior), log.history()
    last = np.maximum(start, start + log.known - context)
    features = {
        "item_rate": [item],
        "item_and_user_rate": [item, user_rate(log, last, prior)],
        "item_and_user_rate_all_rows": [item, user_rate(log, start, prior)],
    }
    result = {}
    for name, rates in features.items():
        x = np.stack([np.log(rate) - np.log1p(-rate) for rate in rates], axis=1)
        model = LogisticRegression().fit(x[log.train], labels)
        result[name] = model.predict_proba(x[rows])[:, 1]
    return result


def _item_rate(log: Interactions, prior: float) -> Array:
    """(R,) like-rate of each row's item over the training targets, the row itself left out."""
    own = log.train.astype(np.float64)
    liked = np.bincount(log.item, weights=own * log.label)[log.item] - own * log.label
    seen = np.bincount(log.item, weights=own)[log.item] - own
    return (liked + SMOOTHING * prior) / (seen + SMOOTHING)


def user_rate(log: Interactions, first: Array, prior: float) -> Array:
    """(R,) like-rate of the user's rows from ``first`` to the last whose label each row knows: by running sums."""
    end = log.history() + log.known
    running = np.r_[0, np.cumsum(log.label, dtype=np.int64)]
    return (running[end] - running[first] + SMOOTHING * prior) / (end - first + SMOOTHING)


def best_possible(paths: Paths, log: Interactions, rows: Array) -> Array | None:
    """(N,) true click probabilities of the targets at ``rows``; None where truth.csv is missing or lacks any."""
    path = paths.synthetic / "truth.csv"
    if not path.is_file():
        return None
    types = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64(), "probability": pa.float64()}
    table = pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types=types))
    known = dict(zip(_keys(table), table["probability"].to_pylist(), strict=True))
    probability = [known.get(key) for key in _keys(log.table.take(rows))]
    return None if any(p is None for p in probability) else np.array(probability, dtype=np.float64)


def _keys(table: pa.Table) -> list[tuple[str, str, int]]:
    return list(zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "timestamp")), strict=True))
