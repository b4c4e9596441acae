"""Scoring with a trained model, by the code that makes training rows and evaluates: served scores equal evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.artifacts import Manifest
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.modeling.network.storage import load
from dti_pipeline.packing import prompts, words
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.report import Knowledge
from dti_pipeline.packing.settings import RATES
from dti_pipeline.packing.store import ITEMS, TokenStore, in_context
from dti_pipeline.packing.vocabulary import load_tokenizer
from dti_pipeline.paradigms import Paradigm
from dti_pipeline.serving import forward
from dti_pipeline.serving.forward import Kept, Prompt
from dti_pipeline.serving.item_states import Asked, ItemStates
from dti_pipeline.serving.knowledge import in_order, known_rows, made
from dti_pipeline.serving.requests import Item, Request, parse
from dti_pipeline.serving.texts import Texts
from dti_pipeline.serving.user_states import NotHeld, UserStates, Words
from dti_pipeline.training.report import TrainReport

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedTokenizerBase

#: Shortest row, in tokens: small requests use rows shorter than training's, in multiples of a mask's block.
SHORTEST_ROW = 128
#: Candidates a request, on average, from which they share their history's keys; fewer are faster as packed prompts.
SHARED = 4


class Scored(NamedTuple):
    """What a model says of one request."""

    probabilities: list[float]  # of its candidates, in order
    state: str | None = None  # name of the state that its user is left with, where states of users are kept


@dataclass(frozen=True)
class _Log:
    """Requests as a log of ``m`` rows: of each, its context and then its candidates, side by side."""

    user: NDArray[np.int32]  # (m,) text of each row's user; (0,): users have none
    text: NDArray[np.int32]  # (m,)
    label: NDArray[np.int8]  # (m,)
    position: NDArray[np.int32]  # (m,)
    request: NDArray[np.int32]  # (m,) as in the token store
    known: NDArray[np.int32]  # (m,)
    is_target: NDArray[np.bool_]  # (m,) True on candidates

    def requests(self) -> list[slice]:
        """Rows of each request that has candidates."""
        bounds = [*np.flatnonzero(self.position == 0).tolist(), len(self.position)]
        return [slice(*pair) for pair in pairwise(bounds) if self.is_target[pair[1] - 1]]

    def seen(self, knowledge: Knowledge) -> NDArray[np.int32]:
        """(m,) as in the token store."""
        return in_context(knowledge.context, self.request, self.known)


def _places(log: _Log, seen: NDArray[np.int32], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(m,) position of each row's first token: right behind the last row it sees."""
    behind = np.zeros(len(seen), np.int64)
    for row, (position, last) in enumerate(zip(log.position.tolist(), seen.tolist(), strict=True)):
        behind[row] = (behind[row - position + last - 1] if last else 0) + lengths[row]
    return behind - lengths


@dataclass(frozen=True)
class Scorer:
    """A trained model, loaded for scoring. Not thread-safe: one for each thread."""

    manifest: Manifest[TrainReport]
    model: CTRModel
    tokenizer: PreTrainedTokenizerBase
    titles: Mapping[str, str]  # item text by id, from the training log
    device: torch.device
    tokens_per_batch: int
    autocast: torch.dtype | None
    knowledge: Knowledge
    user_template: str | None
    user_columns: tuple[str, ...]  # what it fills in
    names: tuple[str, ...]  # what the template fills in
    #: Columns that it names: their values by item, from the training log; None for one that is not of the item alone.
    columns: Mapping[str, Mapping[str, str] | None]
    texts: Texts
    rendered: dict[tuple[Item, str], str] = field(default_factory=dict)  # texts of items, with their gap
    states: ItemStates | None = None
    users: UserStates | None = None

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto", cache_items: bool | int = False) -> Scorer:
        """Load a folder that ``dti train`` published; InputError for any other. ``cache_items`` caches the states of
        items (``dti_isolated`` only), in memory that grows with them; a number: of so many texts at most."""
        folder = Path(folder)
        manifest = artifacts.read(folder, "train", TrainReport)
        training = manifest.config["training"]
        autocast = torch.bfloat16 if training["dtype"] == "bfloat16" else None
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        model = load(folder, chosen)
        items = pq.read_table(folder / ITEMS).to_pydict() if (folder / ITEMS).is_file() else {}
        of_items = {name: dict(zip(items["item_id"], column, strict=True)) for name, column in items.items()}
        titles = of_items.get("item_text", {})
        tokens = int(training["tokens_per_batch"])
        texts, tokenizer = manifest.report.texts, load_tokenizer(folder)
        if artifacts.read(folder, "train", whole=False).files != manifest.files:
            raise InputError(f"{folder} was published anew while it was read: run the command again")
        return cls(
            manifest=manifest,
            model=model,
            tokenizer=tokenizer,
            titles=titles,
            device=chosen,
            tokens_per_batch=tokens,
            autocast=autocast,
            knowledge=texts.knowledge,
            user_template=texts.user_template,
            user_columns=texts.named.user_columns,
            names=texts.named.names,
            columns={name: of_items.get(name) for name in texts.named.columns},
            texts=Texts(tokenizer, texts.max_text_tokens),
            states=ItemStates(model, chosen, autocast, None if cache_items is True else cache_items)
            if cache_items
            else None,
        )

    def with_users(self, digest: str, targets: int, most_bytes: int) -> Scorer:
        """The scorer, with states of users, in prompts of so many targets; ``digest`` is the model's. Raises InputError
        for a model that gains nothing from them."""
        if "gap" in self.names:
            raise InputError(
                "states of users cannot be kept for a model with {gap} in its tokens.template: an item's words depend"
                " on the times of a whole history"
            )
        length: int = self.manifest.report.network["row_length"]
        return replace(self, users=UserStates(self.model, digest, self.knowledge, targets, length, most_bytes))

    def score(self, requests: Sequence[Request | Mapping[str, Any]] | pandas.DataFrame) -> list[list[float]]:
        """P(label = 1) of every candidate, for each request in order: parsed, a mapping, or a row of a frame.

        Cost: a prompt for each request, of n interactions and all its candidates; with cached items one token a
        candidate, and a pass over each new item. Raises InputError that names the request and key.
        """
        records = requests.to_dict("records") if hasattr(requests, "to_dict") else requests
        given = [r if isinstance(r, Request) else parse(r, f"request {i}") for i, r in enumerate(records)]
        return [one.probabilities for one in self.scored(given)]

    def scored(self, requests: Sequence[Request]) -> list[Scored]:
        """The same, each with its user's state."""
        parsed = [in_order(self.knowledge, request) for request in requests]
        if self.texts.forget():
            self.rendered.clear()
        of_users = [i for i, request in enumerate(parsed) if self.users is not None and request.user_id is not None]
        found = dict(zip(of_users, self._from_users([parsed[i] for i in of_users]), strict=True))
        others = [request for i, request in enumerate(parsed) if i not in found]
        for request in others:
            if request.state is not None:
                raise NotHeld(f"{request.where} key state: no states of users are kept: send the whole history")
        alone = map(Scored, self._without_users(others))
        return [found[i] if i in found else next(alone) for i in range(len(parsed))]

    def _without_users(self, parsed: Sequence[Request]) -> list[list[float]]:
        counts = [len(request.candidates) for request in parsed]
        if not sum(counts):
            return [[] for _ in parsed]
        log = self._log(parsed)
        if self.states is not None:
            probability = self._from_states(log, self.states)
        elif sum(counts) >= SHARED * len(parsed) and forward.supports(self.model) is None:
            probability = self._from_shared(log)
        else:
            probability = self._from_prompts(log)
        ends = np.cumsum(counts)
        return [probability[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]

    def score_each(self, requests: Sequence[Request]) -> list[Scored | InputError]:
        """The same, but a request that the model refuses is answered by its error and fails no other. Cost: two more
        passes for each time that the requests halve until it stands alone."""
        try:
            return [*self.scored(requests)]
        except InputError as error:
            if len(requests) == 1:
                return [error]
        half = len(requests) // 2
        return self.score_each(requests[:half]) + self.score_each(requests[half:])

    def _from_prompts(self, log: _Log) -> NDArray[np.float64]:
        store = self._store(log)
        lengths, n, opening = store.lengths(), self.model.context, store.opening()
        usual: int = self.manifest.report.network["row_length"]
        most = max(usual, int(opening.max()) + (n + 1) * int(lengths.max()) + 1)  # no prompt of one candidate is longer
        cut, _ = prompts.cut(log.is_target, store.position, store.seen, lengths, n, 1, most, opening)
        rows = Rows.pack(store, cut, self._row_length(cut.length))
        # Scores are in the order of the store's rows: that of requests and their candidates.
        return score(self.model, rows, np.arange(len(rows)), self.tokens_per_batch, self.device, self.autocast)[1]

    def _from_shared(self, log: _Log) -> NDArray[np.float64]:
        """The same scores, of candidates that read their history's keys where they are."""
        store = self._store(log)
        special, opening = store.special, store.opening()
        place = _places(log, store.seen, store.lengths().astype(np.int64)) + opening
        behind = np.where(log.is_target, special["sum"], np.where(log.label == 1, special["yes"], special["no"]))
        columns = forward.Rows(*(x.astype(np.int64) for x in (log.text, behind, place, store.seen, log.known)))
        asked = []
        for rows in log.requests():
            user = None if not len(log.user) else int(log.user[rows.start])
            asked.append(Prompt(self._opening(user), columns.take(rows), int(log.is_target[rows].sum())))
        return self._computed(asked, self.model.paradigm)[0]

    def _from_users(self, requests: Sequence[Request]) -> list[Scored]:
        """From states of users, which take in what is new of their histories."""
        users, found = self.users, dict[int, Scored]()
        special: dict[str, int] = self.manifest.report.network["special"]
        left = list(range(len(requests)))
        while left:  # the requests of one user one after another
            assert users is not None
            first = {str(requests[i].user_id): i for i in reversed(left)}
            turn = sorted(first.values())
            words = Words(lambda items: [self._text(item, "") for item in items], self.texts, special)
            plans = []
            for i in turn:
                user = None if self.user_template is None else int(self._user_text(requests[i])[0])
                plans.append(users.plan(requests[i], self._opening(user), words))
            probability, kept = self._computed([plan.prompt for plan in plans], self.model.paradigm.in_streams())
            ends = np.cumsum([plan.prompt.candidates for plan in plans])
            for i, plan, one, end in zip(turn, plans, kept, ends, strict=True):
                users.commit(plan, one)
                found[i] = Scored(probability[end - plan.prompt.candidates : end].tolist(), plan.state.name)
            left = [i for i in left if i not in found]
        return [found[i] for i in range(len(requests))]

    def _computed(self, asked: Sequence[Prompt], paradigm: Paradigm) -> tuple[NDArray[np.float64], list[Kept]]:
        """Probabilities of all candidates, and keys and values of each history."""
        passes = forward.run(self.model, asked, self.texts, paradigm, self.tokens_per_batch, self.autocast)
        logits, kept = zip(*passes, strict=True)
        return torch.sigmoid(torch.cat(logits).double()).cpu().numpy(), list(kept)

    def _opening(self, user: int | None) -> NDArray[np.int32]:
        """Tokens that open a prompt of a user, by the index of the user's text."""
        prefix = np.asarray(self.manifest.report.texts.prefix_tokens, np.int32)
        offsets = self.texts.offsets
        return prefix if user is None else np.append(prefix, self.texts.tokens[offsets[user] : offsets[user + 1]])

    def _from_states(self, log: _Log, states: ItemStates) -> NDArray[np.float64]:
        wanted, back = np.unique(log.text, return_inverse=True)
        offsets = self.texts.offsets
        lengths = offsets[wanted + 1] - offsets[wanted]
        ends = np.cumsum(lengths)
        tokens = self.texts.tokens[np.repeat(offsets[wanted] - (ends - lengths), lengths) + np.arange(ends[-1])]
        text = states.of(tokens, np.append(0, ends), self.tokens_per_batch)[back]
        seen = log.seen(self.knowledge)
        place = _places(log, seen, lengths[back] + 1)
        asked = []
        for rows in log.requests():
            last = rows.stop - 1
            context = slice(rows.start, rows.start + int(seen[last]))
            told = log.position[context] < log.known[last]
            candidates = text[rows][log.is_target[rows]]
            label = np.where(told, log.label[context], -1)
            asked.append(Asked(text[context], label, place[context], candidates, int(place[last])))
        return states.score(asked)

    def _log(self, requests: Sequence[Request]) -> _Log:
        texts: list[str] = []
        user: list[NDArray[np.int64]] = []
        label: list[int] = []
        parts = []
        for asked in requests:
            request, known = self._known(asked)
            seen = in_context(self.knowledge.context, request, known)
            gap = self._gaps(asked, seen)
            stop = int(seen[-1])
            first = max(0, stop - self.model.context)
            rows, candidates = stop - first, len(asked.candidates)
            texts += map(self._text, asked.history[first:stop], gap[first:stop])
            texts += [self._text(item, gap[-1]) for item in asked.candidates]
            if self.user_template is not None:
                user.append(np.repeat(self._user_text(asked), rows + candidates))
            # No query sees a label that is not known, nor a candidate's own.
            label += [*(one or 0 for one in asked.labels[first:stop]), *[0] * candidates]
            position = np.arange(rows + candidates, dtype=np.int32)
            of_row = np.append(np.arange(first, stop), np.full(candidates, len(asked.history)))
            parts.append((position, *(np.clip(x[of_row] - first, 0, rows) for x in (request, known)), position >= rows))
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        of_users = np.concatenate(user).astype(np.int32) if user else np.zeros(0, np.int32)
        return _Log(of_users, self.texts.of(texts).astype(np.int32), np.array(label, np.int8), *columns)

    def _text(self, item: Item, gap: str) -> str:
        """:meth:`render`, once for each item."""
        key = item, gap
        if key not in self.rendered:
            self.rendered[key] = self.render(item, gap)
        return self.rendered[key]

    def _user_text(self, asked: Request) -> NDArray[np.int64]:
        """(1,) index of the text of a request's user."""
        return self.texts.of([self.render_user(asked)], "user")

    def _known(self, asked: Request) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of each row of a history, and of the candidates: its request's first row, and how many labels it knows."""
        delay = self.knowledge.feedback_delay
        if delay is not None and asked.history and not asked.times:
            raise InputError(
                f"{asked.where} key history has no timestamps, which a model with split.feedback_delay = {delay:g}"
                " needs: it has learned from labels that come late"
            )
        return known_rows(self.knowledge, asked.labels, asked.times, asked.time, asked.ids, asked.request_id)

    def _gaps(self, asked: Request, seen: NDArray[np.int32]) -> list[str]:
        """`{gap}` of each row of a history and of the candidates; empty where the template does not name it."""
        rows = len(asked.history)
        if "gap" not in self.names:
            return [""] * (rows + 1)
        if rows and (not asked.times or asked.time is None):
            lacks = f"{asked.where} " + ("has no timestamp" if asked.times else "key history has no timestamps")
            raise InputError(f"{lacks}, which a model with {{gap}} in its tokens.template needs")
        times = np.array(made(asked) if rows else [0.0])
        return [words.GAPS[gap] for gap in words.gaps(times, seen)]

    def _store(self, log: _Log) -> TokenStore:
        """A token store in memory, as ``dti tokenize`` writes it."""
        facts, texts = self.manifest.report, self.texts
        split, prefix = np.zeros(len(log.text), np.int8), np.asarray(facts.texts.prefix_tokens, np.int32)
        columns = (log.text, log.label, split, log.position, log.request, log.known)
        special, context = facts.network["special"], self.knowledge.context
        return TokenStore(texts.tokens, texts.offsets, *columns, prefix, special, context=context, user_text=log.user)

    def render_user(self, asked: Request) -> str:
        """A user's text as the training saw it."""
        template, given = self.user_template, dict(asked.user)
        assert template is not None
        values = {}
        for name in self.user_columns:
            value = given.get(name)
            if value is None:
                found = "is no text or number" if name in given else "is missing"
                wants = f"which the model's tokens.user_template {template!r} names"
                raise InputError(f"{asked.where} key user.{name} {found}, {wants}")
            values[name] = value
        return words.render_user(template, values)

    def render(self, item: Item, gap: str) -> str:
        """An item's text as the training saw it; one that is known only by an unknown id is called by that id."""
        template: str = self.manifest.report.texts.template
        item_id, text, more = item
        if item_id is None and "item_id" in self.names:
            raise self._lacks(item, "item_id")
        known = text if text is not None or item_id is None else self.titles.get(item_id)
        given, values = dict(more), {"gap": gap}
        for name, of_items in self.columns.items():
            value = given.get(name) if name in given or of_items is None else of_items.get(item_id or "", "")
            if value is None:
                raise self._lacks(item, name)
            if name in RATES and not (len(value) == 1 and value in "0123456789"):
                called = item.item_text if item_id is None else item_id
                raise InputError(
                    f"the item {called!r} has {name} {value!r}: it must be a digit, 0 to 9, tenths of the clicks among"
                    " the labels that were known when it was shown"
                )
            values[name] = value
        return words.render(template, item_id or "", known, values)

    def _lacks(self, item: Item, name: str) -> InputError:
        called = item.item_text if item.item_id is None else item.item_id
        found = f"no {name} that is text or a number" if name in dict(item.more) else f"no {name}"
        template = self.manifest.report.texts.template
        return InputError(f"the item {called!r} has {found}, which the model's tokens.template {template!r} names")

    def _row_length(self, lengths: NDArray[np.int64]) -> int:
        """The training's row length; less, by halves, where all prompts fit one row; more where one prompt needs it."""
        usual: int = self.manifest.report.network["row_length"]
        short = SHORTEST_ROW
        while short < min(int(lengths.sum()), usual):
            short *= 2
        return max(min(short, usual), -(-int(lengths.max()) // SHORTEST_ROW) * SHORTEST_ROW)
