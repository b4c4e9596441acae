"""Formulas of what training costs: tokens, attended pairs, FLOP, bytes. Pure functions, no torch.

Symbols: n context interactions, k targets a prompt, c tokens of an interaction (text and label; a target has one [SUM]
besides), E hidden size. A FLOP is one addition or one multiplication.

Sources: 2 FLOP per weight and token forward, 4 backward (Kaplan et al., arXiv 2001.08361); backward attention 2.5 times
forward (Dao, arXiv 2307.08691); activations after Korthikanti et al., arXiv 2205.05198. [SUM] rows' own attention
(``model.sum_position``, ``model.forgetting``), a few percent at most, is not counted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import Paradigm, Reach
from dti_pipeline.planning.shape import Shape

#: FLOP of attention for one visible pair of tokens and one head dimension: forward 2 products (scores, values) of 2
#: FLOP, backward 5 (scores again, and the gradients of queries, keys, values and probabilities).
PAIR_FLOP = 2 * (2 + 5)


def sliding_window_tokens(n: float, c: float) -> float:
    """Tokens for each target of the sliding window: n context interactions, its own, one [SUM]."""
    return (n + 1) * c + 1


def streaming_tokens(n: float, c: float, k: float) -> float:
    """Tokens for each target of a streaming prompt: its own interaction and [SUM], and its share of the context."""
    return (c + 1) + n * c / k


def token_speedup(n: float, c: float, k: float) -> float:
    """Tokens of a target in the sliding window over those in a streaming prompt. Bounded by (n + 1) c / (c + 1) + 1 /
    (c + 1) for any k."""
    return sliding_window_tokens(n, c) / streaming_tokens(n, c, k)


def visible_pairs(paradigm: Paradigm, prompts: Prompts, store: TokenStore, context: int) -> int:
    """Pairs (query, key) that attention computes for prompts of a log: the ones of the mask. O(rows + prompts)."""
    length = store.lengths().astype(np.int64)
    m = len(length)
    text, whole = _sums(length - 1), _sums(length)  # of texts, and with labels, of the rows before i
    history = np.arange(m) - store.position
    seen, known = history + store.seen, history + store.known  # rows behind a row's context, and behind known labels
    window = np.maximum(history, seen - context)

    start, first, stop = prompts.start, prompts.first_target, prompts.stop
    between = np.maximum(start, np.minimum(first, seen[stop - 1]))  # context rows end here
    own = length * (length + 1) // 2  # every token but [SUM] in its own interaction
    pairs = _between(_sums(own), start, between) + _between(_sums(own), first, stop)
    pairs += _between(whole, first, stop)  # [SUM]: its text and itself, as many as text and label

    def to_start(weight: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]) -> int:
        """Queries with ``weight`` in rows [begin, end), each seeing its context back to its prompt's start."""
        found, weights = 0, _sums(weight)
        for ends, tokens in ((seen, text), (known, np.arange(m + 1))):
            # Both ascend along the log: the first row whose context goes beyond the prompt's start.
            some = np.clip(np.searchsorted(ends, start, side="right"), begin, end)
            found += _between(_sums(weight * tokens[ends]), some, end)
            found -= int((tokens[start] * (weights[end] - weights[some])).sum())
        return found

    def past(reach: Reach, weight: NDArray[np.int64], with_context: bool) -> int:
        """Queries with ``weight``, of targets or of all rows, each seeing its context as far as ``reach``."""
        if reach is Reach.ITEM:
            return 0
        # No row of the context is further than n from the prompt's start, so none has left a window.
        found = to_start(weight, start, between) if with_context else 0
        if reach is Reach.PROMPT:
            return found + to_start(weight, first, stop)
        in_window = text[seen] - text[window] + np.maximum(known - window, 0)
        return found + _between(_sums(weight * in_window), first, stop)

    pairs += past(paradigm.text, length, True) + past(paradigm.sums, np.ones(m, np.int64), False)
    opening = store.opening(first)
    tokens = whole[between] - whole[start] + whole[stop] - whole[first] + stop - first  # behind each prompt's opening
    return pairs + int((opening * tokens + opening * (opening + 1) // 2).sum())


def _sums(x: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(x, dtype=np.int64)])


def _between(sums: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]) -> int:
    return int((sums[end] - sums[begin]).sum())


def training_flop(
    shape: Shape,
    tokens: float,
    pairs: float,
    targets: float,
    adapters: int | None,
    head: float | None = None,
    recomputed: bool = False,
) -> float:
    """FLOP of one pass over the data, forward and backward.

    ``adapters`` are trained weights beside a frozen body: 4 FLOP a frozen weight and token, 6 a trained one; None: the
    body is trained. ``head`` weights work at [SUM]s only: the two label rows by default. ``recomputed``: layers
    are computed once more in the backward pass (``training.activation_checkpointing``).
    """
    head = 2 * shape.hidden if head is None else head
    body = 6 * shape.body if adapters is None else 4 * shape.body + 6 * adapters
    again = 2 * (shape.body + (adapters or 0)) if recomputed else 0
    attention = (PAIR_FLOP + (4 if recomputed else 0)) * shape.heads * shape.head_dim * shape.layers
    return tokens * (body + again) + pairs * attention + targets * head * (6 if adapters is None else 4)


def weight_bytes(shape: Shape, frozen: bool) -> int:
    """Bytes of the weights: bfloat16 where frozen under adapters, fp32 where trained."""
    return (2 if frozen else 4) * shape.parameters


def activation_bytes(shape: Shape, tokens: int, recomputed: bool = False) -> int:
    """Activations kept for the backward pass over ``tokens`` tokens, bfloat16: an upper bound. ``recomputed``: each
    layer's input, and all of the layer that the backward pass is at."""
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    states = 4 * shape.hidden + attention + 3 * shape.intermediate
    kept = shape.layers * shape.hidden + states if recomputed else shape.layers * states
    return tokens * kept * 2
