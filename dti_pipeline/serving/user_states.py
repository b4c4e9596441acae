"""States of users: keys and values of a history, kept from one request to the next, so that an event is computed once.

For a model that is trained in streaming prompts, of which a request's own prompt is only an end. A user's state is such
a prompt: n interactions before the first request, then every event as it comes, until it has had the k targets that
training's prompts have; then it begins anew. Under `dti` what stands further back than n interactions is dropped, as
nobody sees it any more. So a score is that of a streaming prompt, `auc_streaming` of an evaluation.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.report import Knowledge
from dti_pipeline.packing.store import in_context
from dti_pipeline.paradigms import Reach
from dti_pipeline.serving import forward
from dti_pipeline.serving.forward import Kept, Prompt, Rows
from dti_pipeline.serving.knowledge import is_in_order, known_rows
from dti_pipeline.serving.requests import Item, Request, first_times
from dti_pipeline.serving.texts import Texts

#: Bytes that a row of a history takes beside its keys and values, about.
ROW_BYTES = 300
#: Of a state's name.
DIGEST_BYTES = 16


class NotHeld(InputError):
    """A request goes on from a state that is not there."""


@dataclass(frozen=True)
class State:
    """A user's prompt: rows of a history from ``start`` on, and what was computed of them."""

    before: Any  # hash of the history without the last request's rows
    hash: Any  # of the whole history
    start: int
    first: int  # row of the history that was the prompt's first target
    blind: bool  # a label before the prompt is not known: so none in it is
    texts: tuple[str, ...] = ()  # of its rows, and so are these
    labels: tuple[int | None, ...] = ()
    times: tuple[float, ...] = ()  # or of none
    ids: tuple[str, ...] = ()  # of requests, or of none
    gone: tuple[float, ...] = ()  # times of rows before them that are of the first one's request
    lengths: tuple[int, ...] = ()  # tokens, of text and label
    behind: tuple[int, ...] = ()  # position behind it
    kept: Kept | None = None
    least: int = 0  # row of the prompt from which keys are kept

    @property
    def name(self) -> str:
        """Digest of the model, the user's columns and the whole history."""
        return str(self.hash.hexdigest())

    @property
    def length(self) -> int:
        """Rows of the history."""
        return self.start + len(self.texts)

    @property
    def bytes(self) -> int:
        return (0 if self.kept is None else self.kept.bytes) + ROW_BYTES * len(self.texts)


@dataclass(frozen=True)
class Plan:
    """A request, as a prompt that goes on from a state."""

    user: str
    prompt: Prompt
    state: State  # afterwards; what is computed is still to come


@dataclass(frozen=True)
class Words:
    """How items and a user's columns become tokens."""

    render: Callable[[Sequence[Item]], list[str]]
    texts: Texts
    special: dict[str, int]

    def lengths(self, texts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each, with the one behind it."""
        return self.texts.offsets[texts + 1] - self.texts.offsets[texts] + 1


@dataclass
class UserStates:
    """States of users within ``most_bytes``; the one that was asked for longest ago goes first. Raises InputError for a
    model that gains nothing from them, or cannot go on from kept keys."""

    model: CTRModel
    digest: str  # the model's
    knowledge: Knowledge
    targets: int  # k: of a prompt at most
    row_length: int  # tokens of a prompt at most, a [SUM] for each target among them
    most_bytes: int
    states: OrderedDict[str, State] = field(default_factory=OrderedDict)
    bytes: int = 0

    def __post_init__(self) -> None:
        paradigm = self.model.paradigm
        if not paradigm.streams:
            raise InputError(
                f"states of users are not for {paradigm}: it was trained in single prompts, as it is asked"
            )
        if paradigm.items_stand_alone:
            raise InputError(
                f"states of users gain nothing for {paradigm}: its scores are the same in any prompt, and states of"
                " items serve all users (serving.item_states)"
            )
        reason = forward.supports(self.model)
        if reason is not None:
            raise InputError(f"states of users cannot be kept for this model: {reason}")

    def plan(self, asked: Request, opening: NDArray[np.int32], words: Words, fresh: bool = False) -> Plan:
        """What has to be computed of a request, from the user's state where that is of the same history; changes
        nothing. Raises NotHeld where the request names a state that is not there. ``fresh``: not from one."""
        user = str(asked.user_id)
        state, skip = self._matching(asked, None if fresh else self.states.get(user))
        labels, times = state.labels + asked.labels[skip:], state.times + asked.times[skip:]
        ids, gone = state.ids + asked.ids[skip:], state.gone
        self._require_later(asked, labels, times, ids, gone)
        request, known = known_rows(self.knowledge, labels, times, asked.time, ids, asked.request_id, gone)
        seen = in_context(self.knowledge.context, request, known)
        known = np.zeros_like(known) if state.blind else known
        n, held = self.model.context, state.kept is not None
        cut = state.start or state.least
        if held and cut and int(seen[len(state.texts) :].min()) - n < state.least:
            # It looks further back than what is kept: it is of an earlier time than one before it.
            if asked.state is not None:
                raise _not_held(asked)
            return self.plan(asked, opening, words, fresh=True)
        candidates = words.texts.of(words.render(asked.candidates))
        start = 0 if held else max(0, int(seen[-1]) - n)
        new = words.render(asked.history[max(skip, start) :])
        texts = (*state.texts, *new)
        lengths = (*state.lengths, *words.lengths(words.texts.of(new)).tolist())
        longest = int(words.lengths(candidates).max(initial=1))
        if held and self._ended(state, lengths, longest + len(opening), int(seen[-1])):
            start, held = max(0, int(seen[-1]) - n), False
            texts, lengths = texts[start:], lengths[start:]
        if not held:
            blind = state.blind or None in labels[:start]
            state = State(state.before, state.hash, state.start + start, state.start + len(labels), blind)
            gone = _before(start, times, ids, gone)
            labels, times, ids = labels[start:], times[start:], ids[start:]
            seen, known = (np.clip(x[start:] - start, 0, None).astype(np.int32) for x in (seen, known))
        done = len(state.behind)
        behind = list(state.behind)
        place = []
        for row in range(done, len(texts) + 1):
            place.append(behind[seen[row] - 1] if seen[row] else len(opening))
            if row < len(texts):
                behind.append(place[-1] + lengths[row])
        special = words.special
        tails = [special["yes" if label == 1 else "no"] for label in labels[done:]]
        each = np.append(np.arange(done, len(texts)), np.full(len(candidates), len(texts)))
        columns = (
            np.concatenate([words.texts.of(texts[done:]), candidates]),
            np.array([*tails, *[special["sum"]] * len(candidates)]),
            np.array(place)[each - done],
            seen[each],
            known[each],
        )
        prompt = Prompt(
            opening=opening if state.kept is None else opening[:0],
            rows=Rows(*(column.astype(np.int64) for column in columns)),
            candidates=len(candidates),
            first=done,
            kept=state.kept,
        )
        least = max(state.least, int(seen[-1]) - n) if self.model.paradigm.text is Reach.WINDOW else 0
        state = replace(state, texts=texts, labels=labels, times=times, lengths=lengths, behind=tuple(behind))
        state = replace(state, ids=ids, gone=gone)
        return Plan(user, prompt, replace(state, kept=None, least=least))

    def _matching(self, asked: Request, held: State | None) -> tuple[State, int]:
        """The state that the request goes on from, with the hashes that it will have, and how many of the request's
        rows are in it; an empty one where the user's is of another history."""
        none = [None] * len(asked.labels)
        rows = list(zip(asked.history, asked.labels, asked.times or none, asked.ids or none, strict=True))
        if asked.state is not None:
            if held is None:
                raise _not_held(asked)
            if asked.state == held.name:
                return replace(held, before=held.hash, hash=_with(held.hash, rows)), 0
            if asked.state == held.before.hexdigest() and _with(held.before, rows).digest() == held.hash.digest():
                return held, len(rows)  # a request that was sent again
            raise _not_held(asked)
        seed = hashlib.blake2b(f"{self.digest} {asked.user!r}".encode(), digest_size=DIGEST_BYTES)
        if held is not None and held.length <= len(rows):
            found = _with(seed, rows[: held.length])
            if found.digest() == held.hash.digest():
                before = held.before if held.length == len(rows) else held.hash
                return replace(held, before=before, hash=_with(held.hash, rows[held.length :])), held.length
            seed = found
            rows = rows[held.length :]
        whole = _with(seed, rows)
        return State(whole, whole, 0, 0, False), 0

    def _require_later(
        self,
        asked: Request,
        labels: Sequence[object],
        times: Sequence[float],
        ids: Sequence[str],
        gone: Sequence[float],
    ) -> None:
        """Raise InputError for events that do not follow those of the state, whose columns these begin with."""
        for there, name in ((times, "timestamps"), (ids, "request_ids")):
            if there and len(there) != len(labels):
                raise InputError(
                    f"{asked.where}: the events of a user have {name}, all or none; those of the state differ"
                )
        if ids and not is_in_order(self.knowledge, times, ids, gone):
            raise InputError(f"{asked.where} has an event of a request before the last of those that its state holds")
        if ids and times:
            times = [max(first_times([*[ids[0]] * len(gone), *ids], [*gone, *times]).values())]
        if any(one > two for one, two in pairwise([*times, *([] if asked.time is None else [asked.time])])):
            raise InputError(f"{asked.where} has a timestamp before the last of the events that its state holds")

    def _ended(self, state: State, lengths: Sequence[int], more: int, seen: int) -> bool:
        """Whether the prompt has had all its targets, or its row is full with the next one; ``more`` are the tokens
        that open it and the next one's."""
        first = state.first - state.start  # row of the prompt
        context = sum(lengths[: min(first, seen)])
        targets = len(lengths) - first + 1
        return targets > self.targets or more + context + sum(lengths[first:]) + targets > self.row_length

    def commit(self, plan: Plan, kept: Kept) -> None:
        """Keep what was computed of a plan, and drop other users' states that there is no room for."""
        state = plan.state
        if state.least:
            kept = kept.only((kept.row < 0) | (kept.row >= state.least))
        self.drop(plan.user)
        self.states[plan.user] = state = replace(state, kept=kept)
        self.bytes += state.bytes
        while self.bytes > self.most_bytes:
            self.drop(next(iter(self.states)))

    def drop(self, user: str) -> None:
        """Forget a user's state."""
        old = self.states.pop(user, None)
        self.bytes -= 0 if old is None else old.bytes


def _with(hashed: Any, rows: Sequence[object]) -> Any:
    """The hash of a history with more rows."""
    found = hashed.copy()
    for row in rows:
        found.update(repr(row).encode())
    return found


def _before(start: int, times: tuple[float, ...], ids: tuple[str, ...], gone: tuple[float, ...]) -> tuple[float, ...]:
    """Times of the rows before ``start`` that are of its row's request, ``gone`` ones among them."""
    if not times or not ids[start:]:
        return ()
    left = tuple(time for time, one in zip(times[:start], ids, strict=False) if one == ids[start])
    return gone + left if ids[0] == ids[start] else left


def _not_held(asked: Request) -> NotHeld:
    return NotHeld(
        f"{asked.where} key state: {asked.state!r} is not held for the user {asked.user_id!r}: send the whole history,"
        " without a state"
    )
