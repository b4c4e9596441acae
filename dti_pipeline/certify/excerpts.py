"""Excerpts of a log: the real rows around some targets, each as a user of its own, so that each is changed alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.errors import InputError
from dti_pipeline.events.published import SPLITS
from dti_pipeline.packing import prompts
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore

Mask = NDArray[np.bool_]
#: Rows at the front of an excerpt that stand in no prompt of it.
SPARE = 4


def draw(store: TokenStore, split: str, min_history: int, count: int, seed: int) -> NDArray[np.int64]:
    """Rows of the log, ascending: up to ``count`` targets of a split, of one request each. InputError where there is
    none."""
    eligible = np.flatnonzero((store.split == SPLITS.index(split)) & (store.request >= min_history))
    if not len(eligible):
        raise InputError(f"the {split} split has no target: check split and split.min_history")
    order = np.random.default_rng(seed).permutation(eligible)
    opens = order - store.position[order] + store.request[order]
    _, first = np.unique(opens, return_index=True)
    return np.sort(order[np.sort(first)[:count]])


@dataclass(frozen=True)
class Excerpts:
    """``s`` excerpts of ``m`` rows in all, each around one target. Places are indices within an excerpt."""

    store: TokenStore  # of these rows alone
    of: NDArray[np.int64]  # (m,) excerpt of each row
    log_row: NDArray[np.int64]  # (m,) row of the log
    target: NDArray[np.int64]  # (s,) row of the store
    context: int

    @classmethod
    def around(cls, store: TokenStore, targets: NDArray[np.int64], context: int) -> Excerpts:
        """Up to 3 n + SPARE rows before what each target sees last, and n rows behind its request."""
        starts = np.flatnonzero(store.position == 0)
        opens = np.flatnonzero(store.request == store.position)
        history = targets - store.position[targets]
        low = np.maximum(history, history + store.seen[targets] - 3 * context - SPARE)
        end, behind = (
            np.append(x, len(store.position))[np.searchsorted(x, targets, side="right")] for x in (starts, opens)
        )
        size = np.minimum(end, behind + context + 1) - low
        of = np.repeat(np.arange(len(targets)), size)
        begins = np.cumsum(size) - size
        place = np.arange(len(of)) - begins[of]
        row = low[of] + place
        left_out = (low - history)[of]
        request, known = (np.maximum(0, x[row] - left_out).astype(np.int32) for x in (store.request, store.known))
        columns = [store.text[row], store.user_text[row]] if len(store.user_text) else [store.text[row]]
        used, code = np.unique(np.concatenate(columns), return_inverse=True)
        lengths = store.offsets[used + 1] - store.offsets[used]
        texts = [store.tokens[store.offsets[text] : store.offsets[text + 1]] for text in used]
        codes = np.split(code.astype(np.int32), len(columns))
        small = replace(
            store,
            tokens=np.concatenate(texts).astype(np.int32),
            offsets=np.append(0, np.cumsum(lengths)),
            text=codes[0],
            label=store.label[row].copy(),
            split=store.split[row],
            position=place.astype(np.int32),
            request=request,
            known=known,
            user_text=codes[1] if len(columns) > 1 else store.user_text,
        )
        return cls(small, of, row, begins + targets - low, context)

    def __len__(self) -> int:
        return len(self.target)

    def of_target(self, column: NDArray[Any]) -> NDArray[Any]:
        """(m,) What the target of each row's excerpt has in a column."""
        return column[self.target][self.of]

    @property
    def own(self) -> Mask:
        """The targets."""
        return np.arange(len(self.of)) == self.target[self.of]

    @property
    def together(self) -> Mask:
        """The rows of a target's request, itself among them."""
        return self.store.request == self.of_target(self.store.request)

    @property
    def later(self) -> Mask:
        return self.store.request > self.of_target(self.store.request)

    @property
    def unknown(self) -> Mask:
        """Rows before a target's request whose label it does not know."""
        place = self.store.position
        return (place >= self.of_target(self.store.known)) & (place < self.of_target(self.store.request))

    @property
    def window(self) -> Mask:
        """The n rows that a target sees, or as many as there are."""
        place, seen = self.store.position, self.of_target(self.store.seen)
        return (place < seen) & (place >= seen - self.context)

    @property
    def told(self) -> Mask:
        """The rows of the window whose label a target knows."""
        return self.window & (self.store.position < self.of_target(self.store.known))

    def before(self, place: NDArray[Any]) -> Mask:
        """Rows before a place of each excerpt (s,)."""
        return self.store.position < place[self.of]

    def hops_back(self, hops: int) -> NDArray[np.int64]:
        """(s,) the first place that a target reaches through so many windows, one behind the other."""
        first = self.target - self.store.position[self.target]
        row, place = self.target, np.zeros(len(self), np.int64)
        for _ in range(hops):
            place = np.maximum(0, self.store.seen[row].astype(np.int64) - self.context)
            row = first + place
        return place

    def alone(self, row_length: int) -> Rows:
        """A prompt for each target's request, as a server sees it."""
        return self._rows(self.together, 1, row_length)

    def streaming(self, row_length: int) -> Rows:
        """Prompts of as many targets as a row holds, the drawn one in their midst."""
        first = np.minimum(self.context + SPARE, self.store.request[self.target])
        return self._rows(~self.before(first), None, row_length)

    def _rows(self, is_target: Mask, targets: int | None, row_length: int) -> Rows:
        store, lengths, opening = self.store, self.store.lengths(), self.store.opening()
        arguments = store.position, store.seen, lengths, self.context, targets, row_length, opening
        cut, _ = prompts.cut(is_target, *arguments)
        return Rows.pack(store, cut, row_length)

    def prompt_of(self, rows: Rows) -> NDArray[np.int64]:
        """(s,) the prompt of ``rows`` that holds each target."""
        order = np.argsort(rows.first_target)
        return order[np.searchsorted(rows.first_target[order], self.target, side="right") - 1]

    def start_in(self, rows: Rows) -> NDArray[np.int64]:
        """(s,) the place at which the prompt of each target begins."""
        return self.store.position[rows.start[self.prompt_of(rows)]].astype(np.int64)

    def begun_alike(self, rows: Rows) -> Rows:
        """Each target alone in a prompt that begins where its prompt of ``rows`` does."""
        start = rows.start[self.prompt_of(rows)]
        return replace(rows, start=start, first_target=self.target, stop=self.target + 1, row=np.arange(len(self)))

    @property
    def described(self) -> Mask:
        """(s,) targets whose user has a text."""
        store = self.store
        if not len(store.user_text):
            return np.zeros(len(self), bool)
        return np.diff(store.offsets)[store.user_text[self.target]] > 0

    def changed(self, labels: Mask, texts: Mask, seed: int, users: Mask | None = None) -> TokenStore:
        """The store with the other label, and with another text of as many tokens, on some rows; and with another text
        of the ``users`` (s,) of some excerpts."""
        store, rows = self.store, np.flatnonzero(texts)
        people = [] if users is None else np.flatnonzero(self.described & users).tolist()
        was = np.concatenate([store.text[rows], *(store.user_text[self.target[[i]]] for i in people)])
        old = [store.tokens[store.offsets[text] : store.offsets[text + 1]] for text in was]
        number = len(store.offsets) - 1 + np.arange(len(was), dtype=np.int32)
        text, user_text = store.text.copy(), store.user_text.copy()
        text[rows] = number[: len(rows)]
        for i, new in zip(people, number[len(rows) :], strict=True):
            user_text[self.of == i] = new
        return replace(
            store,
            tokens=np.concatenate(
                [store.tokens, _others(store.tokens, np.concatenate([*old, store.tokens[:0]]), seed)]
            ),
            offsets=np.append(store.offsets, store.offsets[-1] + np.cumsum([len(one) for one in old], dtype=np.int64)),
            text=text,
            user_text=user_text,
            label=np.where(labels, 1 - store.label, store.label).astype(np.int8),
        )


def _others(vocabulary: NDArray[np.int32], tokens: NDArray[np.int32], seed: int) -> NDArray[np.int32]:
    """Another token of a vocabulary for each of some tokens that are in it."""
    words = np.unique(vocabulary)
    by = np.random.default_rng(seed).integers(1, max(2, len(words)), len(tokens))
    return words[(np.searchsorted(words, tokens) + by) % len(words)]
