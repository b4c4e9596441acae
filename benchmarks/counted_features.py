"""Features of a target that are counted, not learnt: what gradient-boosted trees are given.

What a feature may see is what the floors may see (dti_pipeline/evaluation/floors.py): rates of items and of title
tokens count training targets only, a training target's own label left out; a user's rates count the user's earlier
rows.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from dti_pipeline.evaluation.interactions import Array, Interactions
from dti_pipeline.packing.store import TokenStore

NAMES = (
    "item rate", "item count", "title rate", "user rate, last n", "user rate, all", "history length", "last label",
    "rate of similar titles, last n", "similarity, last n", "label of most similar, last n",
)  # fmt: skip
SMOOTHING = 5.0


def features(log: Interactions, store: TokenStore, n: int) -> Array:
    """(R, 10) float32, a row for each row of the log. Cost: n look-ups in a (texts, texts) matrix a row."""
    prior = float(log.label[log.train].mean())
    here = np.arange(len(log.label))
    start = here - log.position
    item_rate, item_count = _item(log, prior)
    tokens = _tokens_of_texts(store)
    last = np.where(log.position > 0, log.label[np.maximum(here - 1, 0)], -1)
    columns = [
        item_rate, np.log1p(item_count), _title_rate(log, store, tokens, prior),
        _user_rate(log, np.maximum(start, here - n), prior), _user_rate(log, start, prior), np.log1p(log.position),
        last, *_similar(log, store, tokens, n, prior),
    ]  # fmt: skip
    return np.stack(columns, axis=1).astype(np.float32)


def _item(log: Interactions, prior: float) -> tuple[Array, Array]:
    own = log.train.astype(np.float64)
    liked = np.bincount(log.item, weights=own * log.label)[log.item] - own * log.label
    seen = np.bincount(log.item, weights=own)[log.item] - own
    return (liked + SMOOTHING * prior) / (seen + SMOOTHING), seen


def _user_rate(log: Interactions, first: Array, prior: float) -> Array:
    running = np.r_[0, np.cumsum(log.label, dtype=np.int64)]
    here = np.arange(len(log.label))
    return (running[here] - running[first] + SMOOTHING * prior) / (here - first + SMOOTHING)


def _tokens_of_texts(store: TokenStore) -> sparse.csr_array:
    """(texts, vocabulary) 1 where the text has the token."""
    texts = len(store.offsets) - 1
    of_text = np.repeat(np.arange(texts), np.diff(store.offsets))
    size = (texts, int(store.tokens.max()) + 1)
    found = sparse.csr_array((np.ones(len(store.tokens), np.float32), (of_text, store.tokens)), shape=size)
    found.data[:] = 1  # a token twice in a title counts once
    return found


def _title_rate(log: Interactions, store: TokenStore, tokens: sparse.csr_array, prior: float) -> Array:
    """Mean log-odds of the like-rates of the title's tokens, a training target's own label left out: it is one of three
    numbers a text, for it depends on the label and on nothing else of the row."""
    texts = tokens.shape[0]
    own = log.train.astype(np.float64)
    liked = np.bincount(store.text, weights=own * log.label, minlength=texts)
    seen = np.bincount(store.text, weights=own, minlength=texts)
    token_liked, token_seen = tokens.T @ liked, tokens.T @ seen
    count = np.maximum(np.diff(tokens.indptr), 1)

    def mean_log_odds(less_liked: int, less_seen: int) -> Array:
        rate = (token_liked - less_liked + SMOOTHING * prior) / (np.maximum(token_seen - less_seen, 0) + SMOOTHING)
        rate = rate.clip(1e-3, 1 - 1e-3)
        return (tokens @ np.log(rate / (1 - rate))) / count

    cases = np.stack([mean_log_odds(0, 0), mean_log_odds(0, 1), mean_log_odds(1, 1)])
    return cases[np.where(log.train, 1 + log.label, 0), store.text]


def _similar(
    log: Interactions, store: TokenStore, tokens: sparse.csr_array, n: int, prior: float
) -> tuple[Array, Array, Array]:
    """Over the last n rows: like-rate weighted by title similarity, the sum of the weights, the nearest one's label.
    Similarity: cosine of TF-IDF weights."""
    idf = np.log(tokens.shape[0] / np.maximum(np.asarray(tokens.sum(axis=0)).ravel(), 1))
    weighted = tokens @ sparse.diags_array(idf.astype(np.float32))
    norm = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel()).clip(1e-6)
    unit = sparse.diags_array(1 / norm.astype(np.float32)) @ weighted
    similarity = np.asarray((unit @ unit.T).todense(), dtype=np.float32)
    rows = len(log.label)
    liked, total, nearest, label = (np.zeros(rows, np.float32) for _ in range(4))
    label[:] = -1
    for back in range(1, n + 1):
        at = np.flatnonzero(log.position >= back)
        weight = similarity[store.text[at], store.text[at - back]]
        liked[at] += weight * log.label[at - back]
        total[at] += weight
        nearer = weight > nearest[at]
        nearest[at[nearer]], label[at[nearer]] = weight[nearer], log.label[at[nearer] - back]
    return (liked + prior) / (total + 1), total, label
