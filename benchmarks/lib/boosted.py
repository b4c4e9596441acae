"""Gradient-boosted trees on features of a target that are counted, not learnt.

Rates of items and of title tokens count training targets only, and those of a training target leave its own user's fold
out (ten folds of users). The floors leave one row out instead, which a logistic regression cannot turn against them;
trees can: they read a row's own label off the difference. What is counted of a user are rows whose label is known.
"""

from __future__ import annotations

import time

import numpy as np
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier

from benchmarks.lib.din import Fitted
from dti_pipeline.evaluation import metrics
from dti_pipeline.evaluation.floors import SMOOTHING, user_rate
from dti_pipeline.evaluation.interactions import Array, Interactions
from dti_pipeline.packing.store import TokenStore

NAMES = (
    "item rate", "item count", "title rate", "user rate, last n", "user rate, all", "history length", "last label",
    "rate of similar titles, last n", "similarity, last n", "label of most similar, last n",
)  # fmt: skip
FOLDS = 10
#: Trees are added until the validation AUC falls; the rest is scikit-learn's own.
TREES = {
    "max_iter": 400, "learning_rate": 0.05, "max_leaf_nodes": 31, "min_samples_leaf": 100, "l2_regularization": 1.0,
}  # fmt: skip


def fit(log: Interactions, store: TokenStore, targets: dict[str, Array], n: int, seed: int) -> Fitted:
    """Train on ``targets["train"]`` (rows of the log); as many trees as do best on ``validation`` score ``test``."""
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
    return Fitted(probability, float(aucs[trees - 1]), trees, 1, seconds, nodes)


def features(log: Interactions, store: TokenStore, n: int) -> Array:
    """(R, 10) float32, a row for each row of the log. Cost: n look-ups in a (texts, texts) matrix a row."""
    prior = float(log.label[log.train].mean())
    start = log.history()
    end = start + log.known
    item_rate, item_count = _item(log, prior)
    tokens = _tokens_of_texts(store)
    last = np.where(log.known > 0, log.label[np.maximum(end - 1, 0)], -1)
    columns = [
        item_rate, np.log1p(item_count), _title_rate(log, store, tokens, prior),
        user_rate(log, np.maximum(start, end - n), prior), user_rate(log, start, prior), np.log1p(log.request),
        last, *_similar(log, store, tokens, n, prior),
    ]  # fmt: skip
    return np.stack(columns, axis=1).astype(np.float32)


def _folds(log: Interactions) -> Array:
    """(R,) which fold a row's rates leave out; ``FOLDS``, none, where the row is no training target."""
    return np.where(log.train, log.user % FOLDS, FOLDS)


def _without_fold(log: Interactions, code: Array, many: int, weight: Array) -> Array:
    """(many, FOLDS + 1) sums of ``weight`` over the training targets of each code that are not of the column's fold."""
    at = code[log.train] * FOLDS + log.user[log.train] % FOLDS
    each = np.bincount(at, weights=weight[log.train], minlength=many * FOLDS).reshape(many, FOLDS)
    total = each.sum(axis=1, keepdims=True)
    return np.hstack([total - each, total])


def _item(log: Interactions, prior: float) -> tuple[Array, Array]:
    many = int(log.item.max()) + 1
    here = (log.item, _folds(log))
    liked = _without_fold(log, log.item, many, log.label.astype(np.float64))[here]
    seen = _without_fold(log, log.item, many, np.ones(len(log.label)))[here]
    return (liked + SMOOTHING * prior) / (seen + SMOOTHING), seen


def _tokens_of_texts(store: TokenStore) -> sparse.csr_array:
    """(texts, vocabulary) 1 where the text has the token."""
    texts = len(store.offsets) - 1
    of_text = np.repeat(np.arange(texts), np.diff(store.offsets))
    size = (texts, int(store.tokens.max()) + 1)
    found = sparse.csr_array((np.ones(len(store.tokens), np.float32), (of_text, store.tokens)), shape=size)
    found.data[:] = 1  # a token twice in a title counts once
    return found


def _title_rate(log: Interactions, store: TokenStore, tokens: sparse.csr_array, prior: float) -> Array:
    """Mean log-odds of the like-rates of the title's tokens."""
    texts = tokens.shape[0]
    text = store.text.astype(np.int64)
    liked = tokens.T @ _without_fold(log, text, texts, log.label.astype(np.float64))
    seen = tokens.T @ _without_fold(log, text, texts, np.ones(len(log.label)))
    rate = ((liked + SMOOTHING * prior) / (seen + SMOOTHING)).clip(1e-3, 1 - 1e-3)
    each = (tokens @ np.log(rate / (1 - rate))) / np.maximum(np.diff(tokens.indptr), 1)[:, None]
    return each[text, _folds(log)]


def _similar(
    log: Interactions, store: TokenStore, tokens: sparse.csr_array, n: int, prior: float
) -> tuple[Array, Array, Array]:
    """Over the last n known rows: like-rate weighted by title similarity, the sum of the weights, the nearest one's
    label. Similarity: cosine of TF-IDF weights."""
    idf = np.log(tokens.shape[0] / np.maximum(np.asarray(tokens.sum(axis=0)).ravel(), 1))
    weighted = tokens @ sparse.diags_array(idf.astype(np.float32))
    norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel()).clip(1e-6)
    unit = sparse.diags_array(1 / norm.astype(np.float32)) @ weighted
    similarity = np.asarray((unit @ unit.T).todense(), dtype=np.float32)
    rows = len(log.label)
    liked, total, nearest, label = (np.zeros(rows, np.float32) for _ in range(4))
    label[:] = -1
    end = log.history() + log.known
    for back in range(1, n + 1):
        at = np.flatnonzero(log.known >= back)
        past = end[at] - back
        weight = similarity[store.text[at], store.text[past]]
        liked[at] += weight * log.label[past]
        total[at] += weight
        nearer = weight > nearest[at]
        nearest[at[nearer]], label[at[nearer]] = weight[nearer], log.label[past[nearer]]
    return (liked + prior) / (total + 1), total, label
