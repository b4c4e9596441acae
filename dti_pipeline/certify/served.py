"""Proofs on what a server answers: requests made of the log's own rows, against the prompts of the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from numpy.typing import NDArray

from dti_pipeline.certify.excerpts import Excerpts
from dti_pipeline.certify.proofs import Bench, Logits, compared, moves
from dti_pipeline.certify.report import SERVER, Proof
from dti_pipeline.errors import InputError
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.some import cut_some
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.serving import requests
from dti_pipeline.serving.item_states import ItemStates
from dti_pipeline.serving.requests import Request
from dti_pipeline.serving.scorer import Scorer

#: A probability that is nearer to 0 or 1 counts as so near: a float64 near 1 tells no logit above 34.
SATURATED = 1e-15


@dataclass(frozen=True)
class Asked:
    """Requests as a client sends them, one for each drawn target, and which of its candidates the target is."""

    plain: list[dict[str, Any]]
    place: NDArray[np.int64]  # (s,)

    def parsed(self, change: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda i, one: one) -> list[Request]:
        return [requests.parse(change(i, one), f"request {i}") for i, one in enumerate(self.plain)]


class OnServer:
    """The proofs of a scorer on the requests of the drawn targets."""

    def __init__(
        self,
        scorer: Scorer,
        bench: Bench,
        excerpts: Excerpts,
        events: Sequence[Path],
        late: bool,
        named: bool = False,
    ) -> None:
        """``late``: the server itself finds out which labels are not known yet, from the times of a request.
        ``named``: requests of the log have ids."""
        self.scorer, self.bench, self.excerpts, self.late = scorer, bench, excerpts, late
        self.asked = _asked(scorer, excerpts, events, named)
        self.plain = self._answers(scorer, self.asked.parsed())

    def evaluated(self, store: TokenStore, row_length: int, published: Mapping[int, float]) -> Iterator[Proof]:
        """Against the log's own prompts as ``dti evaluate`` makes them, and the scores that it has ``published`` of
        this model, by row."""
        log_row = self.excerpts.log_row
        wanted = np.sort(log_row[self.excerpts.together])
        cut = cut_some(store, wanted, self.excerpts.context, 1, row_length)
        target, found = self.bench.logits(Rows.pack(store, cut, row_length))
        rows = log_row[self.excerpts.target]
        evaluated = found[np.searchsorted(target, rows)]
        allowed = self.bench.allowed
        yield compared("equal", "the scorer's answer, and the evaluation's prompts", SERVER, self.plain, evaluated,
                       allowed)  # fmt: skip
        told = np.array([row in published for row in rows.tolist()])
        score = _logit(np.array([published.get(row, 0.5) for row in rows.tolist()]))
        yield compared("equal", "the scorer's answer, and the published predictions", SERVER, self.plain, score,
                       allowed, told)  # fmt: skip

    def __iter__(self) -> Iterator[Proof]:
        yield from self._equal()
        window = [int(x) for x in self.excerpts.hops_back(1)]
        yield from self._hidden(window)
        yield from self._seen(window)

    def _answers(self, scorer: Scorer, asked: list[Request]) -> Logits:
        """(s,) logits of the drawn targets among the answers."""
        answers = scorer.score(asked)
        return _logit(np.array([one[place] for one, place in zip(answers, self.asked.place.tolist(), strict=True)]))

    def _equal(self) -> Iterator[Proof]:
        allowed, asked, place = self.bench.allowed, self.asked.parsed(), self.asked.place.tolist()
        found = _logit(np.array([self.scorer.score([one])[0][at] for one, at in zip(asked, place, strict=True)]))
        yield compared("equal", "requests together, and one at a time", SERVER, self.plain, found, allowed)
        single = [replace(one, candidates=(one.candidates[at],)) for one, at in zip(asked, place, strict=True)]
        several = np.array([len(one.candidates) > 1 for one in asked])
        found = _logit(np.array([one[0] for one in self.scorer.score(single)]))
        yield compared("equal", "all candidates together, and each alone", SERVER, self.plain, found, allowed,
                       several)  # fmt: skip
        try:
            states = ItemStates(self.scorer.model, self.scorer.device, self.scorer.autocast)
        except InputError:  # a model whose items have no states of their own
            return
        kept = replace(self.scorer, states=states)
        yield compared("equal", "from whole prompts, and from kept states of items", SERVER, self.plain,
                       self._answers(kept, asked), allowed)  # fmt: skip

    def _hidden(self, window: list[int]) -> Iterator[Proof]:
        late = self._unknown()

        def with_labels(i: int, one: dict[str, Any]) -> dict[str, Any]:
            told = {at: 1 - label for at, label in late[i].items()}
            return _changed(one, lambda at, entry: entry | {"label": told[at]} if at in told else entry)

        def older(i: int, one: dict[str, Any]) -> dict[str, Any]:
            items = [entry["item_id"] for entry in one["history"]]
            return _changed(
                one,
                lambda at, entry: (
                    _flipped(entry) | {"item_id": items[(at + 1) % len(items)]} if at < window[i] else entry
                ),
            )

        for what, change, asked in (
            ("labels that are not known yet by the request's times", with_labels, [bool(one) for one in late]),
            ("labels and items older than its window", older, [first > 0 for first in window]),
        ):
            other = self._answers(self.scorer, self.asked.parsed(change)) if any(asked) else self.plain
            yield compared("hidden", what, SERVER, self.plain, other, self.bench.unseen, np.array(asked))

    def _unknown(self) -> list[dict[int, int]]:
        """Of each request the labels that come too late for it, by place in its history; none where a server is not
        told times, or must leave them out itself."""
        of, found = self.excerpts, list[dict[int, int]]([{} for _ in range(len(self.excerpts))])
        if self.late:
            for row in np.flatnonzero(of.unknown).tolist():
                found[int(of.of[row])][int(of.store.position[row])] = int(of.store.label[row])
        return found

    def _seen(self, window: list[int]) -> Iterator[Proof]:
        def told(i: int, one: dict[str, Any]) -> dict[str, Any]:
            return _changed(one, lambda at, entry: _flipped(entry) if at >= window[i] else entry)

        asked = np.bincount(self.excerpts.of[self.excerpts.told], minlength=len(self.excerpts)) > 0
        other = self._answers(self.scorer, self.asked.parsed(told))
        yield moves("the labels of its window that it knows", SERVER, self.plain, other, self.bench.unseen, asked)


def _changed(one: dict[str, Any], change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    return one | {"history": [change(at, entry) for at, entry in enumerate(one["history"])]}


def _flipped(entry: dict[str, Any]) -> dict[str, Any]:
    label = entry["label"]
    return entry if label is None else entry | {"label": 1 - label}


def _logit(probability: NDArray[np.float64]) -> Logits:
    """Logits of probabilities, which are exact enough up to 25."""
    inside = np.clip(probability, SATURATED, 1 - SATURATED)
    return torch.logit(torch.from_numpy(inside)).numpy()


def _asked(scorer: Scorer, excerpts: Excerpts, events: Sequence[Path], named: bool) -> Asked:
    """Requests of the rows of the files ``events`` that the excerpts have, with all that this model asks for."""
    own = [name for name, of_items in scorer.columns.items() if of_items is None]
    columns = ["item_id", "timestamp", *dict.fromkeys([*own, *scorer.user_columns])]
    log = ds.dataset([str(path) for path in events], format="parquet")
    table = log.take(pa.array(excerpts.log_row), columns=columns).to_pydict()
    store, target = excerpts.store, excerpts.target
    begins = (target - store.position[target]).tolist()
    opens = np.flatnonzero(store.request == store.position)
    request = np.searchsorted(opens, np.arange(len(excerpts.of)), side="right") - 1
    ids = _ids(len(opens)) if named else []
    clock = None not in table["timestamp"]
    times = np.array(table["timestamp"] if clock else np.zeros(len(excerpts.of)))
    made = np.minimum.reduceat(times, opens)
    for begin in begins:  # of a first request that is cut an earlier row may be gone
        first, second = request[begin], request[begin] + 1
        if second < len(opens) and excerpts.of[opens[second]] == excerpts.of[begin] and made[first] > made[second]:
            made[first] = times[begin] = made[second]
    candidates = np.flatnonzero(excerpts.together)
    of_target = np.split(candidates, np.flatnonzero(np.diff(excerpts.of[candidates])) + 1)

    def item(row: int) -> dict[str, Any]:
        return {"item_id": table["item_id"][row]} | {name: table[name][row] for name in own}

    def shown(row: int, when: float) -> dict[str, Any]:
        return ({"timestamp": when} if clock else {}) | ({"request_id": ids[request[row]]} if named else {})

    asked = []
    for begin, row, together in zip(begins, target.tolist(), of_target, strict=True):
        told = begin + int(store.known[row])
        history = [
            item(at) | {"label": int(store.label[at]) if at < told else None} | shown(at, float(times[at]))
            for at in range(begin, int(together[0]))
        ]
        user = {name: table[name][row] for name in scorer.user_columns}
        one = {"history": history, "candidates": [item(at) for at in together.tolist()]}
        one |= shown(row, float(made[request[row]]))
        asked.append(one | ({"user": user} if user else {}))
    return Asked(asked, target - begins - store.request[target])


def _ids(count: int) -> list[str]:
    """Ids of requests that a server has in this order, where it has only a hash of them to go by."""
    return sorted(map(str, range(count)), key=lambda one: md5(one.encode()).hexdigest())
