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
from dti_pipeline.packing import prompts
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.report import Knowledge
from dti_pipeline.packing.store import ITEMS, TokenStore
from dti_pipeline.packing.tokenize import encode, load_tokenizer, render
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

    texts: dict[str, int]  # distinct texts and their indices
    text: NDArray[np.int32]  # (m,)
    label: NDArray[np.int8]  # (m,)
    position: NDArray[np.int32]  # (m,)
    request: NDArray[np.int32]  # (m,) as in the token store
    known: NDArray[np.int32]  # (m,)
    is_target: NDArray[np.bool_]  # (m,) True on candidates

    def seen(self, knowledge: Knowledge) -> NDArray[np.int32]:
        """(m,) as in the token store."""
        return self.request if knowledge.context == "shown" else self.known


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
    states: ItemStates | None = None
    known: dict[str, int] = field(default_factory=dict)  # index of each text's cached states

    @classmethod
    def load(cls, folder: Path | str, device: str = "auto", cache_items: bool = False) -> Scorer:
        """Load a folder that ``dti train`` published; InputError for any other. ``cache_items`` caches the states of
        items (``dti_isolated`` only), in memory that grows with them."""
        folder = Path(folder)
        manifest = artifacts.read(folder, "train", TrainReport)
        training = manifest.config["training"]
        autocast = torch.bfloat16 if training["dtype"] == "bfloat16" else None
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        model = load(folder, chosen)
        items = pq.read_table(folder / ITEMS).to_pydict() if (folder / ITEMS).is_file() else {}
        titles = dict(zip(items.get("item_id", ()), items.get("item_text", ()), strict=True))
        states = ItemStates(model, chosen, autocast) if cache_items else None
        tokens = int(training["tokens_per_batch"])
        knowledge = manifest.report.texts.knowledge
        return cls(manifest, model, load_tokenizer(folder), titles, chosen, tokens, autocast, knowledge, states)

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

    def _from_prompts(self, log: _Log) -> NDArray[np.float64]:
        store = self._store(list(log.texts), log)
        lengths, n, prefix = store.lengths(), self.model.context, len(store.prefix)
        usual: int = self.manifest.report.network["row_length"]
        most = max(usual, prefix + (n + 1) * int(lengths.max()) + 1)  # no prompt of one candidate is longer
        cut, _ = prompts.cut(log.is_target, store.position, store.seen, lengths, n, 1, most, prefix)
        rows = Rows.pack(store, cut, self._row_length(cut.length))
        # Scores are in the order of the store's rows: that of requests and their candidates.
        return score(self.model, rows, np.arange(len(rows)), self.tokens_per_batch, self.device, self.autocast)[1]

    def _from_states(self, log: _Log, states: ItemStates) -> NDArray[np.float64]:
        new = [text for text in log.texts if text not in self.known]
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
        seen: dict[Item, int] = {}

        def text_of(item: Item) -> int:
            if item not in seen:
                seen[item] = index.setdefault(self._render(item), len(index))
            return seen[item]

        text: list[int] = []
        label: list[int] = []
        parts = []
        for number, asked in enumerate(requests):
            request, known = self._known(asked, number)
            stop = int((request if self.knowledge.context == "shown" else known)[-1])
            first = max(0, stop - self.model.context)
            rows, candidates = stop - first, len(asked.candidates)
            text += [text_of(item) for item in (*asked.history[first:stop], *asked.candidates)]
            # No query sees a label that is not known, nor a candidate's own.
            label += [*(one or 0 for one in asked.labels[first:stop]), *[0] * candidates]
            position = np.arange(rows + candidates, dtype=np.int32)
            of_row = np.append(np.arange(first, stop), np.full(candidates, len(asked.history)))
            parts.append((position, *(np.clip(x[of_row] - first, 0, rows) for x in (request, known)), position >= rows))
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        return _Log(index, np.array(text, np.int32), np.array(label, np.int8), *columns)

    def _known(self, asked: Request, number: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of each row of a history, and of the candidates: its request's first row, and how many labels it knows."""
        delay = self.knowledge.feedback_delay
        if delay is not None and asked.history and not asked.times:
            raise InputError(
                f"request {number} key history has no timestamps, which a model with split.feedback_delay = {delay:g}"
                " needs: it has learned from labels that come late"
            )
        return known_rows(self.knowledge, asked.labels, asked.times, asked.time)

    def _store(self, texts: list[str], log: _Log) -> TokenStore:
        """A token store in memory, as ``dti tokenize`` writes it; its text i is ``texts[i]``."""
        facts = self.manifest.report
        tokens, offsets, _ = encode(self.tokenizer, texts, facts.texts.max_text_tokens)
        split, prefix = np.zeros(len(log.text), np.int8), np.asarray(facts.texts.prefix_tokens, np.int32)
        columns = (log.text, log.label, split, log.position, log.request, log.known)
        special, context = facts.network["special"], self.knowledge.context
        return TokenStore(tokens, offsets, *columns, prefix, special, context=context)

    def _render(self, item: Item) -> str:
        """An item's text as the training saw it; one that is known only by an unknown id is called by that id."""
        template: str = self.manifest.report.texts.template
        item_id, text = item
        if item_id is None and "{item_id}" in template:
            raise InputError(f"the item {text!r} has no item_id, which the model's tokens.template {template!r} names")
        known = text if text is not None or item_id is None else self.titles.get(item_id)
        return render(template, item_id or "", known)

    def _row_length(self, lengths: NDArray[np.int64]) -> int:
        """The training's row length; less, by halves, where all prompts fit one row; more where one prompt needs it."""
        usual: int = self.manifest.report.network["row_length"]
        short = SHORTEST_ROW
        while short < min(int(lengths.sum()), usual):
            short *= 2
        return max(min(short, usual), -(-int(lengths.max()) // SHORTEST_ROW) * SHORTEST_ROW)
