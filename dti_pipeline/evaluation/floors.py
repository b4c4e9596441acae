"""What bounds a model's AUC: cost-free floors, and for a synthetic log the best probabilities that can be had.

The floors are logistic regressions on the logits of smoothed like-rates, fitted on training targets: the item's rate
alone; with the user's over the last n rows whose label is known (n = the prompts' context); with the user's over all
such rows. An item's rate counts training targets, without the row itself (leave one out); a user's counts rows of any
split. Where words of a prompt tell rates (``{item_rate}``, ``{user_rate}``), those with the user's over the last n rows
are a floor too: they count labels of the test period, as far as they were known.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.interactions import Array, Interactions
from dti_pipeline.packing.settings import RATES
from dti_pipeline.paths import Paths

#: Rows at the training click rate that every rate starts from.
SMOOTHING = 5.0

#: Those of every log.
FLOORS = ("item_rate", "item_and_user_rate", "item_and_user_rate_all_rows")
IN_WORDS = "rates_in_words"


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
    if told := [log.table[name] for name in RATES if name in log.table.column_names]:
        in_words = [(np.array(tenths.to_pylist(), np.float64) + 0.5) / 10 for tenths in told]
        features[IN_WORDS] = [*in_words, user_rate(log, last, prior)]
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
    """(N,) click probabilities of the targets at ``rows``, from all that made the labels and can be known: no model of
    these targets is expected to do better. None where truth.csv is missing or lacks any.

    Tastes and qualities count as known. The mood of a sitting does not: it follows from the sitting's labels that are
    known to the target by the rules of ``split``, all of them, also where the context of a prompt is shorter. truth.csv
    is of labels by the default ``split.label_threshold``.
    """
    path = paths.synthetic / "truth.csv"
    if not path.is_file():
        return None
    ids = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64(), "sitting": pa.int64()}
    types = ids | dict.fromkeys(("probability", "in_bad_mood", "in_good_mood"), pa.float64())
    table = pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types=types))
    moods = "sitting" in table.column_names
    line = dict(zip(_keys(table), range(len(table)), strict=True))
    found = [line.get(key) for key in _keys(log.table if moods else log.table.take(rows))]
    if None in found:
        return None
    truth = table.take(found)
    return _mood_inferred(log, truth)[rows] if moods else truth["probability"].to_numpy()


def _mood_inferred(log: Interactions, truth: pa.Table) -> NDArray[np.float64]:
    """(R,) click probabilities over both moods of each row's sitting, weighted by what its known labels say of them.

    Bayes: odds of good against bad begin at 1, and each known label multiplies them by its probability in a good mood
    over that in a bad one. Exact, since the moods of sittings are drawn one by one. Cost: one sort of the log.
    """
    sitting, bad, good = (truth[name].to_numpy() for name in ("sitting", "in_bad_mood", "in_good_mood"))
    # A load has a history again, and with it the sittings of before.
    sitting = np.unique(np.stack([sitting, log.history()]), axis=1, return_inverse=True)[1].reshape(-1)
    evidence = np.where(log.label == 1, np.log(good / bad), np.log1p(-good) - np.log1p(-bad))
    width = int(log.position.max(initial=0)) + 1
    place = sitting * width + log.position  # sittings one behind the other, each in its user's order
    order = np.argsort(place)
    before = np.r_[0, np.cumsum(evidence[order])]
    first, last = (np.searchsorted(place[order], sitting * width + position) for position in (0, log.known))
    weight = 1 / (1 + np.exp(before[first] - before[last]))  # of the good mood
    return weight * good + (1 - weight) * bad


def _keys(table: pa.Table) -> list[tuple[str, str, int]]:
    return list(zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "timestamp")), strict=True))
