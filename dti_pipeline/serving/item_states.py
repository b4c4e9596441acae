"""Cache of item states of a `dti_isolated` model: keys and values of an item's tokens, computed once.

Under `dti_isolated` a text or label token sees only its own interaction, so its keys and values in every layer depend
on the item, the label and the position. Keys are cached un-rotated and rotated when they are read, which leaves the
position out. So an item's states serve every history it occurs in, and a target costs one token, its [SUM].
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dti_pipeline.errors import InputError
from dti_pipeline.modeling.attention.distance import rotate, unrotate
from dti_pipeline.modeling.attention.interface import Backend, BatchAttention
from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.network import backbone, probe
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.packing.reader import Rows, split
from dti_pipeline.packing.store import TokenStore

#: Keys that one scoring pass reads, over all its targets: bounds memory, and fits a CPU's cache.
KEYS = 1 << 14
#: Tokens of a row of items; more where the longest item needs it.
ROW = 512


@dataclass
class ItemStates:
    """Keys and values of ``t`` texts in every layer. State ``2 i + label`` is text i followed by that label. Raises
    InputError for a model whose item states depend on more than the item."""

    model: CTRModel
    device: torch.device
    autocast: torch.dtype | None = None
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))  # (2 t + 1,) tokens of states
    keys: dict[int, Tensor] = field(default_factory=dict)  # by layer, (tokens, H_kv, D), un-rotated
    values: dict[int, Tensor] = field(default_factory=dict)  # by layer, (tokens, H_kv, D)
    sums: Tensor | None = None  # (t, E) what enters the first layer at a [SUM] behind each text

    def __post_init__(self) -> None:
        model = self.model
        if not model.paradigm.items_stand_alone:
            raise InputError(f"item states depend on histories in a model of paradigm {model.paradigm}")
        if model.has_prefix:
            raise InputError(
                "item states depend on histories in a model with tokens.prefix or tokens.user_template: every item sees"
                " what opens its prompt"
            )
        if model.settings.forgetting != "none":
            raise InputError("item states cannot be kept for a model that forgets: its [SUM]s read mixed states")
        if not probe.keys_can_be_unrotated(backbone.whole(model.lm)):
            raise InputError("item states cannot be kept for a model that rotates its keys in a way of its own")

    def clear(self) -> None:
        """Forget every state."""
        self.offsets, self.keys, self.values, self.sums = np.zeros(1, np.int64), {}, {}, None

    @torch.no_grad()
    def add(self, store: TokenStore, tokens_per_batch: int) -> None:
        """Compute and append the states of every text of ``store``; its interactions are not used. Cost: one forward
        pass over each text with either label."""
        texts = len(store.offsets) - 1
        alone = np.zeros(2 * texts, np.int32)
        store = replace(  # a log in which every text occurs with label 0 and with label 1
            store,
            text=np.repeat(np.arange(texts, dtype=np.int32), 2),
            label=np.tile(np.array([0, 1], np.int8), texts),
            position=alone,
            request=alone,
            known=alone,
        )
        lengths = store.lengths().astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        row_length = max(ROW, int(lengths.max()) + 1)
        each = np.arange(2 * texts)  # a prompt of its own: a target without context
        rows = Rows.pack(store, Prompts(each, each, each + 1, lengths + 1), row_length)
        height = rows.height(tokens_per_batch)
        places, parts = [], []
        width = backbone.decoder_of(self.model.lm).config.get_text_config().hidden_size
        sums = torch.empty(texts, width, device=self.device)
        for part in split(np.arange(len(rows)), height):
            layout = rows.assemble(part, height if self.device.type == "cuda" else 0)
            batch = Batch.of(layout, store.label).to(self.device)
            row, slot = np.nonzero((layout.kind == Kind.TEXT) | (layout.kind == Kind.LABEL))
            state = rows.start[rows.bounds[part[row]] + layout.document[row, slot]]
            places.append(starts[state] + layout.position[row, slot])
            at = (torch.from_numpy(row).to(self.device), torch.from_numpy(slot).to(self.device))
            parts.append(self._states(batch, at, sums))
        back = torch.from_numpy(np.argsort(np.concatenate(places))).to(self.device)
        for layer in parts[0]:
            key, value = (torch.cat(x)[back] for x in zip(*(part[layer] for part in parts), strict=True))
            self.keys[layer] = torch.cat([self.keys[layer], key]) if layer in self.keys else key
            self.values[layer] = torch.cat([self.values[layer], value]) if layer in self.values else value
        self.sums = sums if self.sums is None else torch.cat([self.sums, sums])
        self.offsets = np.concatenate([self.offsets, self.offsets[-1] + np.cumsum(lengths)])

    def _states(self, batch: Batch, at: tuple[Tensor, Tensor], sums: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
        """Keys and values (tokens, H_kv, D) of each layer at the tokens ``at``; writes ``sums``."""
        with self._precision():
            embedded = self.model.embed(batch)
            sums[batch.target // 2] = embedded.reshape(-1, embedded.shape[-1])[batch.sum_index].float()
            attention = self.model.batch_attention(batch, embedded)
            found: dict[int, tuple[Tensor, Tensor]] = {}
            windowed = attention.windowed
            if windowed is not None:
                windowed = replace(windowed, backend=_Keeping(windowed.backend, at, found))
            keeping = replace(attention, backend=_Keeping(attention.backend, at, found), windowed=windowed)
            self.model.states(embedded, batch.position, keeping)
        return found

    def lengths(self, text: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of each text and a label."""
        return self.offsets[2 * text + 1] - self.offsets[2 * text]

    @torch.no_grad()
    def score(
        self,
        text: NDArray[np.int64],
        label: NDArray[np.int8],
        is_target: NDArray[np.bool_],
        known: NDArray[np.bool_] | None = None,
        place: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """P(label = 1) of T targets, (T,), at the cost of one token each.

        ``text`` and ``label`` (m,) are the interactions of their prompts, one after another; a prompt ends with its
        target. ``known`` (default: all): whether the target is told the label. ``place``: position of an interaction's
        first token (default: behind the one before it).
        """
        state = 2 * text + np.where(is_target, 0, label)
        whole = self.offsets[state + 1] - self.offsets[state]
        if place is None:
            before = np.cumsum(whole) - whole
            first_of_prompt = np.append(0, np.flatnonzero(is_target)[:-1] + 1)
            place = before - before[first_of_prompt[np.cumsum(is_target) - is_target]]
        lengths = whole - (is_target if known is None else is_target | ~known)  # without the label token
        sizes = np.diff(np.cumsum(lengths)[is_target], prepend=0)  # keys of each target
        ends = np.cumsum(lengths)
        cached = np.repeat(self.offsets[state] - (ends - lengths), lengths) + np.arange(ends[-1])
        places = np.repeat(place - (ends - lengths), lengths) + np.arange(ends[-1])
        first = np.cumsum(sizes) - sizes
        own, own_place = text[is_target], (place + lengths)[is_target]
        logits = []
        for here in split(np.arange(len(sizes)), max(1, KEYS // int(sizes.max()))):
            at = np.arange(int(sizes[here].max()))
            valid = at < sizes[here, None]
            key = np.where(valid, first[here, None] + at, 0)
            arrays = (own[here], own_place[here], cached[key], places[key], valid)
            logits.append(self._logits(*(torch.from_numpy(x).to(self.device) for x in arrays)))
        return torch.sigmoid(torch.cat(logits).double()).cpu().numpy()

    def _logits(self, own: Tensor, position: Tensor, index: Tensor, place: Tensor, valid: Tensor) -> Tensor:
        """(T,) logits of targets with texts ``own`` (T,) whose [SUM]s stand at ``position`` (T,), from the cached keys
        ``index`` (T, S) at positions ``place``."""
        assert self.sums is not None
        model = self.model
        embedded = self.sums[own][:, None]
        own_places = backbone.rotary(model.lm, embedded, position[:, None])
        places = backbone.rotary(model.lm, embedded, place)
        window = model.attention.window
        far = valid & (position[:, None] - place >= window)  # nothing up to the last such key: visibility.met
        near = valid & ~far.flip(1).cummax(1).values.flip(1)
        unrotated = own_places if model.settings.sum_position == "nope_alibi" else None
        every, windowed = (
            BatchAttention(_Recalling(self, index, self._mask(seen, position, place), places, unrotated))
            for seen in (valid, near)
        )
        with self._precision():
            attention = replace(every, windowed=windowed, window=window)
            hidden = model.states(embedded, position[:, None], attention)
            return model.logits(hidden[:, 0])

    def _mask(self, seen: Tensor, position: Tensor, place: Tensor) -> Tensor:
        """Of [SUM]s (T,) over kept keys (T, S) and themselves, (T, 1, 1, S + 1): bool, or a bias."""
        model = self.model
        mask = torch.cat([seen, seen.new_ones(len(seen), 1)], 1)[:, None, None]
        if model.settings.sum_position == "rope":
            return mask
        back = (position[:, None] - place).clamp(min=0)
        back = torch.cat([back, back.new_zeros(len(back), 1)], 1)[:, None, None]
        return (-model.slopes[None, :, None, None] * back).masked_fill(~mask, float("-inf"))

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)


@dataclass
class _Keeping:
    """An attention backend that keeps, un-rotated, the keys and values of some tokens in every layer."""

    inner: Backend
    at: tuple[Tensor, Tensor]  # (tokens,) row and slot of those that are kept
    found: dict[int, tuple[Tensor, Tensor]]  # by layer

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        assert layer is not None
        plain = layer.unrotated(key)
        self.found[module.layer_idx] = (plain.transpose(1, 2)[self.at], value.transpose(1, 2)[self.at])
        return self.inner.attend(module, query, key, value, scale, layer)


@dataclass(frozen=True)
class _Recalling:
    """An attention backend of one [SUM] a row: it reads kept keys and values, and its own."""

    states: ItemStates
    index: Tensor  # (T, S) of the bank
    mask: Tensor  # bool, or a bias
    places: backbone.Rotary  # of the keys
    own: backbone.Rotary | None  # of the [SUM], where neither query nor keys carry positions

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        number = module.layer_idx
        past = self.states.keys[number][self.index].transpose(1, 2)
        if self.own is None:
            past = rotate(past, *self.places[number]).to(key.dtype)
        else:
            query, key = (unrotate(x, *self.own[number]).to(past.dtype) for x in (query, key))
        return scaled_dot_product_attention(
            query,
            torch.cat([past, key], 2),
            torch.cat([self.states.values[number][self.index].transpose(1, 2), value], 2),
            attn_mask=self.mask if self.mask.dtype == torch.bool else self.mask.to(query.dtype),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
