"""Scoring with a trained model, by the code that makes training rows and evaluates: served scores equal evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from dti_pipeline.packing.store import ITEMS, TokenStore, in_context
from dti_pipeline.packing.tokenize import encode, joined, load_tokenizer
from dti_pipeline.serving.item_states import ItemStates
from dti_pipeline.serving.knowledge import known_rows
from dti_pipeline.serving.requests import Item, Request, parse
from dti_pipeline.training.report import TrainReport

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedTokenizerBase

#: Shortest row, in tokens: small requests use rows shorter than training's, in multiples of a mask's block.
SHORTEST_ROW = 128


@dataclass(frozen=True)
class _Log:
    """Requests as a log of ``m`` rows: of each, its context and then its candidates, side by side."""

    texts: dict[str, int]  # distinct texts of items and their indices
    users: dict[str, int]  # distinct texts of users and their indices
    user: NDArray[np.int32]  # (m,) of each row's user; (0,): users have none
    text: NDArray[np.int32]  # (m,)
    label: NDArray[np.int8]  # (m,)
    position: NDArray[np.int32]  # (m,)
    request: NDArray[np.int32]  # (m,) as in the token store
    known: NDArray[np.int32]  # (m,)
    is_target: NDArray[np.bool_]  # (m,) True on candidates

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
    states: ItemStates | None = None
    most_states: int | None = None  # texts that states are kept of; None: all
    known: dict[str, int] = field(default_factory=dict)  # index of each text's cached states

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
        states = ItemStates(model, chosen, autocast) if cache_items else None
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
            states=states,
            most_states=None if isinstance(cache_items, bool) else cache_items,
        )

    def score(self, requests: Sequence[Request | Mapping[str, Any]] | pandas.DataFrame) -> list[list[float]]:
        """P(label = 1) of every candidate, for each request in order: parsed, a mapping, or a row of a frame.

        Cost: a prompt for each request, of n interactions and all its candidates; with cached items one token a
        candidate, and a pass over each new item. Raises InputError that names the request and key.
        """
        records = requests.to_dict("records") if hasattr(requests, "to_dict") else requests
        parsed = [r if isinstance(r, Request) else parse(r, f"request {i}") for i, r in enumerate(records)]
        counts = [len(request.candidates) for request in parsed]
        if not sum(counts):
            return [[] for _ in parsed]
        log = self._log(parsed)
        probability = self._from_prompts(log) if self.states is None else self._from_states(log, self.states)
        ends = np.cumsum(counts)
        return [probability[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]

    def score_each(self, requests: Sequence[Request]) -> list[list[float] | InputError]:
        """The same, but a request that the model refuses is answered by its error and fails no other. Cost: two more
        passes for each time that the requests halve until it stands alone."""
        try:
            return [*self.score(requests)]
        except InputError as error:
            if len(requests) == 1:
                return [error]
        half = len(requests) // 2
        return self.score_each(requests[:half]) + self.score_each(requests[half:])

    def _from_prompts(self, log: _Log) -> NDArray[np.float64]:
        store = self._store(list(log.texts), log)
        lengths, n, opening = store.lengths(), self.model.context, store.opening()
        usual: int = self.manifest.report.network["row_length"]
        most = max(usual, int(opening.max()) + (n + 1) * int(lengths.max()) + 1)  # no prompt of one candidate is longer
        cut, _ = prompts.cut(log.is_target, store.position, store.seen, lengths, n, 1, most, opening)
        rows = Rows.pack(store, cut, self._row_length(cut.length))
        # Scores are in the order of the store's rows: that of requests and their candidates.
        return score(self.model, rows, np.arange(len(rows)), self.tokens_per_batch, self.device, self.autocast)[1]

    def _from_states(self, log: _Log, states: ItemStates) -> NDArray[np.float64]:
        new = [text for text in log.texts if text not in self.known]
        if self.most_states is not None and self.known and len(self.known) + len(new) > self.most_states:
            self.known.clear()  # which text is asked for next cannot be told: all are made anew, as they come
            states.clear()
            new = list(log.texts)
        if new:
            states.add(self._store(new, log), self.tokens_per_batch)
            self.known.update(zip(new, range(len(self.known), len(self.known) + len(new)), strict=True))
        text = np.array([self.known[text] for text in log.texts])[log.text]
        seen = log.seen(self.knowledge)
        place = _places(log, seen, states.lengths(text))
        # For each candidate its context, then itself.
        target = np.flatnonzero(log.is_target)
        each = seen[target] + 1
        of = np.repeat(np.arange(len(target)), each)
        place_in = np.arange(len(of)) - (np.cumsum(each) - each)[of]
        is_target = place_in == seen[target][of]
        rows = np.where(is_target, target[of], (target - log.position[target])[of] + place_in)
        known = log.position[rows] < log.known[target][of]
        return states.score(text[rows], log.label[rows], is_target, known, place[rows])

    def _log(self, requests: Sequence[Request]) -> _Log:
        index: dict[str, int] = {}
        users: dict[str, int] = {}
        found: dict[tuple[Item, str], int] = {}

        def text_of(item: Item, gap: str) -> int:
            if (item, gap) not in found:
                found[item, gap] = index.setdefault(self.render(item, gap), len(index))
            return found[item, gap]

        text: list[int] = []
        user: list[int] = []
        label: list[int] = []
        parts = []
        for asked in requests:
            request, known = self._known(asked)
            seen = in_context(self.knowledge.context, request, known)
            gap = self._gaps(asked, seen)
            stop = int(seen[-1])
            first = max(0, stop - self.model.context)
            rows, candidates = stop - first, len(asked.candidates)
            text += map(text_of, asked.history[first:stop], gap[first:stop])
            text += [text_of(item, gap[-1]) for item in asked.candidates]
            if self.user_template is not None:
                user += [users.setdefault(self.render_user(asked), len(users))] * (rows + candidates)
            # No query sees a label that is not known, nor a candidate's own.
            label += [*(one or 0 for one in asked.labels[first:stop]), *[0] * candidates]
            position = np.arange(rows + candidates, dtype=np.int32)
            of_row = np.append(np.arange(first, stop), np.full(candidates, len(asked.history)))
            parts.append((position, *(np.clip(x[of_row] - first, 0, rows) for x in (request, known)), position >= rows))
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        texts = np.array(user, np.int32), np.array(text, np.int32)
        return _Log(index, users, *texts, np.array(label, np.int8), *columns)

    def _known(self, asked: Request) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of each row of a history, and of the candidates: its request's first row, and how many labels it knows."""
        delay = self.knowledge.feedback_delay
        if delay is not None and asked.history and not asked.times:
            raise InputError(
                f"{asked.where} key history has no timestamps, which a model with split.feedback_delay = {delay:g}"
                " needs: it has learned from labels that come late"
            )
        return known_rows(self.knowledge, asked.labels, asked.times, asked.time)

    def _gaps(self, asked: Request, seen: NDArray[np.int32]) -> list[str]:
        """`{gap}` of each row of a history and of the candidates; empty where the template does not name it."""
        rows = len(asked.history)
        if "gap" not in self.names:
            return [""] * (rows + 1)
        if rows and (not asked.times or asked.time is None):
            lacks = f"{asked.where} " + ("has no timestamp" if asked.times else "key history has no timestamps")
            raise InputError(f"{lacks}, which a model with {{gap}} in its tokens.template needs")
        times = np.array([*asked.times, asked.time] if rows else [0.0])
        return [words.GAPS[gap] for gap in words.gaps(times, seen)]

    def _store(self, texts: list[str], log: _Log) -> TokenStore:
        """A token store in memory, as ``dti tokenize`` writes it; its text i is ``texts[i]``."""
        facts = self.manifest.report
        tokens, offsets, _ = encode(self.tokenizer, texts, facts.texts.max_text_tokens)
        if log.users:
            of_users = encode(self.tokenizer, list(log.users), facts.texts.max_text_tokens, "user")
            tokens, offsets = joined((tokens, offsets), of_users[:2])
        split, prefix = np.zeros(len(log.text), np.int8), np.asarray(facts.texts.prefix_tokens, np.int32)
        columns = (log.text, log.label, split, log.position, log.request, log.known)
        special, context = facts.network["special"], self.knowledge.context
        user = log.user + np.int32(len(texts))
        return TokenStore(tokens, offsets, *columns, prefix, special, context=context, user_text=user)

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
