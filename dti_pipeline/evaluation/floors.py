"""Cost-free floors: logistic regression on smoothed like-rates. A model below these has learnt nothing of worth.

Three floors, each on the logit of its rates: the item's like-rate alone; with the user's like-rate over the last n rows
(n = the prompts' context, so that it sees what a model sees); with the user's like-rate over all earlier rows.
Fitted on the training targets, evaluated on the same targets as the models.

Rows that each rate may see:
- An item's rate counts training targets only, as a model learns from: none later than an evaluated target of its user.
  A training target's own label is taken out of its item's rate (leave one out): otherwise the regression learns to
  trust a rate that contains the answer.
- A user's rate counts the user's earlier rows, whatever split they belong to, as a model's prompt does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.interactions import Array, Interactions

#: Rows at the training click rate that every rate starts from. Between 2 and 20 it moves the floors' AUC on MovieLens
#: by less than 0.003.
SMOOTHING = 5.0

FLOORS = ("item_rate", "item_and_user_rate", "item_and_user_rate_all_rows")


def floors(log: Interactions, rows: Array, context: int) -> dict[str, NDArray[np.float64]]:
    """Each floor's probabilities for the targets at ``rows`` (N,), by name. Cost: O(rows of the log), no sort.

    Raises InputError where the training targets are of one class, or there are none.
    """
    labels = log.label[log.train]
    if len(np.unique(labels)) < 2:
        raise InputError(f"the floors need training targets of both classes: all {len(labels)} are of one class")
    prior = float(labels.mean())
    here = np.arange(len(log.label))
    start = here - log.position
    features = {
        "item_rate": [_item_rate(log, prior)],
        "item_and_user_rate": [_item_rate(log, prior), _user_rate(log, np.maximum(start, here - context), prior)],
        "item_and_user_rate_all_rows": [_item_rate(log, prior), _user_rate(log, start, prior)],
    }
    result = {}
    for name in FLOORS:
        x = np.stack([np.log(rate) - np.log1p(-rate) for rate in features[name]], axis=1)
        model = LogisticRegression().fit(x[log.train], labels)
        result[name] = model.predict_proba(x[rows])[:, 1]
    return result


def _item_rate(log: Interactions, prior: float) -> Array:
    """(R,) like-rate of each row's item over the training targets, the row itself left out."""
    own = log.train.astype(np.float64)
    liked = np.bincount(log.item, weights=own * log.label)[log.item] - own * log.label
    seen = np.bincount(log.item, weights=own)[log.item] - own
    return (liked + SMOOTHING * prior) / (seen + SMOOTHING)


def _user_rate(log: Interactions, first: Array, prior: float) -> Array:
    """(R,) like-rate of the user's rows from ``first`` up to, not including, each row: a window by running sums."""
    here = np.arange(len(log.label))
    running = np.r_[0, np.cumsum(log.label, dtype=np.int64)]
    return (running[here] - running[first] + SMOOTHING * prior) / (here - first + SMOOTHING)
