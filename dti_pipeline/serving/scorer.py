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
from dti_pipeline.packing.store import ITEMS, TokenStore
from dti_pipeline.packing.tokenize import encode, load_tokenizer, render
from dti_pipeline.serving.item_states import ItemStates
from dti_pipeline.serving.requests import Item, Request, parse
from dti_pipeline.training.report import TrainReport

if TYPE_CHECKING:
    import pandas
    from transformers import PreTrainedTokenizerBase

#: Shortest row, in tokens: small requests use rows shorter than training's, in multiples of a mask's block.
SHORTEST_ROW = 128


@dataclass(frozen=True)
class _Log:
    """Requests as a log of ``m`` rows: for each candidate its context, then itself."""

    texts: dict[str, int]  # distinct texts and their indices
    text: NDArray[np.int32]  # (m,)
    label: NDArray[np.int8]  # (m,)
    position: NDArray[np.int32]  # (m,)
    is_target: NDArray[np.bool_]  # (m,) True on candidates


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
        return cls(manifest, model, load_tokenizer(folder), titles, chosen, tokens, autocast, states)

    def score(self, requests: Sequence[Request | Mapping[str, Any]] | pandas.DataFrame) -> list[list[float]]:
        """P(label = 1) of every candidate, for each request in order: parsed, a mapping, or a row of a frame.

        Cost: a prompt of n + 1 interactions for each candidate; with cached items one token, and a pass over each new
        item. Raises InputError that names the request and key.
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
        unlimited = int(np.iinfo(np.int32).max)  # no prompt is too long
        n, prefix = self.model.context, len(store.prefix)
        cut = prompts.cut(log.is_target, store.position, store.lengths(), n, 1, unlimited, prefix)
        rows = Rows.pack(store, cut, self._row_length(cut.length))
        # Scores are in the order of the store's rows: that of requests and their candidates.
        return score(self.model, rows, np.arange(len(rows)), self.tokens_per_batch, self.device, self.autocast)[1]

    def _from_states(self, log: _Log, states: ItemStates) -> NDArray[np.float64]:
        new = [text for text in log.texts if text not in self.known]
        if new:
            states.add(self._store(new, log), self.tokens_per_batch)
            self.known.update(zip(new, range(len(self.known), len(self.known) + len(new)), strict=True))
        index = np.array([self.known[text] for text in log.texts])
        return states.score(index[log.text], log.label, log.is_target)

    def _log(self, requests: Sequence[Request]) -> _Log:
        index: dict[str, int] = {}
        seen: dict[Item, int] = {}

        def text_of(item: Item) -> int:
            if item not in seen:
                seen[item] = index.setdefault(self._render(item), len(index))
            return seen[item]

        text: list[int] = []
        label: list[int] = []
        position: list[int] = []
        for request in requests:
            first = max(0, len(request.history) - self.model.context)
            context = [text_of(item) for item in request.history[first:]]
            for candidate in request.candidates:
                text += [*context, text_of(candidate)]
                label += [*request.labels[first:], 0]  # no query sees a candidate's own label
                position += range(len(context) + 1)
        places = np.array(position, np.int32)
        is_target = np.append(places[1:] == 0, True)  # the last of each prompt
        return _Log(index, np.array(text, np.int32), np.array(label, np.int8), places, is_target)

    def _store(self, texts: list[str], log: _Log) -> TokenStore:
        """A token store in memory, as ``dti tokenize`` writes it; its text i is ``texts[i]``."""
        facts = self.manifest.report
        tokens, offsets, _ = encode(self.tokenizer, texts, facts.texts.max_text_tokens)
        split, prefix = np.zeros(len(log.text), np.int8), np.asarray(facts.texts.prefix_tokens, np.int32)
        special, place = facts.network["special"], log.position
        return TokenStore(tokens, offsets, log.text, log.label, split, place, place, place, prefix, special)

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
