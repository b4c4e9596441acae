"""Targets of a log as serving's fast forms are asked for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from dti_pipeline.packing.store import TokenStore
from dti_pipeline.serving.forward import Prompt, Rows
from dti_pipeline.serving.item_states import Asked, ItemStates


def request_of(store: TokenStore, first: int, stop: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the log in the prompt of the candidates ``first .. stop``, of one request, and each one's position."""
    history = first - store.position[first]
    end = history + store.seen[first]
    rows = np.append(np.arange(max(history, end - n), end), np.arange(first, stop))
    behind: dict[int, int] = {}
    place, opening = [], int(store.opening(slice(first, first + 1))[0])
    for row in rows:
        last = history + store.seen[row] - 1
        place.append(behind[last] if last >= rows[0] else opening)
        behind[row] = place[-1] + store.lengths()[row]
    return rows, np.array(place, np.int64)


def prompt(store: TokenStore, first: int, stop: int, n: int) -> Prompt:
    rows, place = request_of(store, first, stop, n)
    begin, opening, special = rows[0] - store.position[rows[0]], store.prefix, store.special
    context = min(len(rows) - (stop - first), len(rows))
    base = store.position[rows[0]] if context else store.seen[first]
    behind = np.where(store.label[rows] == 1, special["yes"], special["no"])
    behind[context:] = special["sum"]
    if len(store.user_text):
        text = store.user_text[begin]
        opening = np.concatenate([opening, store.tokens[store.offsets[text] : store.offsets[text + 1]]])
    seen, known = (np.clip(x[rows] - base, 0, context) for x in (store.seen, store.known))
    columns = (store.text[rows], behind, place, seen, known)
    return Prompt(opening, Rows(*(column.astype(np.int64) for column in columns)), stop - first)


def asked(store: TokenStore, state: np.ndarray, target: int, n: int) -> Asked:
    """``state``: of each text of the store."""
    rows, place = request_of(store, target, target + 1, n)
    context, told = rows[:-1], store.position[rows[:-1]] < store.known[target]
    label = np.where(told, store.label[context], -1).astype(np.int64)
    return Asked(state[store.text[context]], label, place[:-1], state[store.text[[target]]], int(place[-1]))


def scores_of(states: ItemStates, store: TokenStore, targets: np.ndarray, n: int) -> np.ndarray:
    """Scores of targets from states of items."""
    state = states.of(store.tokens, store.offsets, 64)
    return states.score([asked(store, state, int(target), n) for target in targets])


def texts(store: TokenStore) -> Any:
    return SimpleNamespace(tokens=store.tokens, offsets=store.offsets)
