"""States of items of a `dti_isolated` model: keys and values of an item's tokens, computed once.

Under `dti_isolated` a text or label token sees only its own interaction, so its keys and values in every layer depend
on the item, the label and the position. Keys are kept un-rotated and rotated when they are read, which leaves the
position out; those of a text do not depend on the label behind it. So an item's states serve every history it occurs
in, and a target costs one token, its [SUM].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dti_pipeline.errors import InputError
from dti_pipeline.modeling.attention.distance import rotate, unrotate
from dti_pipeline.modeling.attention.interface import Backend, BatchAttention
from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.shared import History, Leaves, SharedKeys, attend
from dti_pipeline.modeling.network import backbone, probe
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.layout import Kind
from dti_pipeline.serving.forward import Tokens

#: Keys that one scoring pass reads, over all its requests: bounds memory, and fits a CPU's cache.
KEYS = 1 << 14
#: Tokens behind each text: no, yes.
LABELS = 2


@dataclass(frozen=True)
class States:
    """Keys and values of ``t`` texts, of each its tokens, then the label no, then yes. Tensors may have room for more
    behind them."""

    offsets: NDArray[np.int64]  # (t + 1,) tokens before each text
    tokens: Tensor  # (tokens, layers, 2, H_kv, D): un-rotated keys, and values
    sums: Tensor  # (t, E) what enters the first layer at a [SUM] behind each text

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __add__(self, other: States) -> States:
        offsets = np.append(self.offsets, self.offsets[-1] + other.offsets[1:])
        tokens = _with(self.tokens, int(self.offsets[-1]), other.tokens)
        return States(offsets, tokens, _with(self.sums, len(self), other.sums))


def _with(x: Tensor, end: int, more: Tensor) -> Tensor:
    """``x`` with ``more`` from ``end`` on; copied where its room has ended."""
    if end + len(more) > len(x):
        x = torch.cat([x[:end], x.new_empty(max(end, len(more)), *x.shape[1:])])
    x[end : end + len(more)] = more
    return x


@dataclass(frozen=True)
class Asked:
    """Candidates behind one context."""

    text: NDArray[np.int64]  # (r,) states of the interactions that they see
    label: NDArray[np.int64]  # (r,) 0, 1, or -1 where it is not told
    place: NDArray[np.int64]  # (r,) position of each one's first token
    candidates: NDArray[np.int64]  # (m,) states
    behind: int  # position of their first token


@dataclass
class ItemStates:
    """States of texts, found by their tokens. Raises InputError for a model whose item states depend on more than the
    item."""

    model: CTRModel
    device: torch.device
    autocast: torch.dtype | None = None
    most: int | None = None  # texts that are made here and kept; None: all
    stored: States | None = None  # made before, whose texts come first in ``index``
    made: States | None = None
    index: dict[bytes, int] = field(default_factory=dict)  # of a text's tokens

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

    def of(self, tokens: NDArray[np.int32], offsets: NDArray[np.int64], at_a_time: int) -> NDArray[np.int64]:
        """(t,) states of texts, by their tokens end to end and offsets (t + 1,). Those that are not there are made,
        ``at_a_time`` tokens in a pass; beyond ``most`` all others that were made are forgotten first. States that were
        asked for before are then other ones. Cost: one forward pass over each new text."""
        texts = [tokens[first:stop] for first, stop in pairwise(offsets.tolist())]
        names = [text.tobytes() for text in texts]
        new = {name: text for name, text in zip(names, texts, strict=True) if name not in self.index}
        if self.most is not None and self.made is not None and len(self.made) + len(new) > self.most:
            self.forget()  # which text is asked for next cannot be told: all are made anew, as they come
            new = {name: text for name, text in zip(names, texts, strict=True) if name not in self.index}
        group: list[NDArray[np.int32]] = []
        size = 0
        for text in [*new.values(), None]:
            if group and (text is None or size + len(text) + LABELS > at_a_time):
                made = self._make(group)
                self.made = made if self.made is None else self.made + made
                group, size = [], 0
            if text is not None:
                group.append(text)
                size += len(text) + LABELS
        self.index.update(zip(new, range(len(self.index), len(self.index) + len(new)), strict=True))
        return np.array([self.index[name] for name in names], np.int64)

    def use(self, stored: States, index: dict[bytes, int]) -> None:
        """Take states that were made before; those made here are forgotten."""
        self.stored, self.made, self.index = stored, None, dict(index)

    def only(self, texts: Sequence[NDArray[np.int32]], at_a_time: int) -> States:
        """States of texts, those that were stored and others, which are not kept."""
        offsets = np.cumsum([0, *map(len, texts)])
        self.forget()
        found = self.of(np.concatenate(texts), offsets, at_a_time)
        begin, lengths = self.offsets[found], np.diff(offsets) + LABELS
        ends = np.cumsum(lengths)
        at = torch.from_numpy(np.repeat(begin - (ends - lengths), lengths) + np.arange(ends[-1])).to(self.device)
        tokens = self._of_both(at, lambda part, i: part.tokens[i], lambda part: int(part.offsets[-1]))
        return States(np.append(0, ends), tokens, self._sums(torch.from_numpy(found).to(self.device)))

    def forget(self) -> None:
        """Forget the states that were made here."""
        count = 0 if self.stored is None else len(self.stored)
        self.index, self.made = {name: i for name, i in self.index.items() if i < count}, None

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(t + 1,) tokens before each text."""
        parts = [part for part in (self.stored, self.made) if part is not None]
        if len(parts) < 2:
            return parts[0].offsets
        return np.append(parts[0].offsets, parts[0].offsets[-1] + parts[1].offsets[1:])

    @torch.no_grad()
    def _make(self, texts: Sequence[NDArray[np.int32]]) -> States:
        """States of texts: of each one sequence, in which the labels do not see each other."""
        model, special = self.model, self.model.label_tokens.tolist()
        sizes = np.array([len(text) for text in texts])
        ends = np.cumsum(sizes + LABELS)
        starts, wide = ends - sizes - LABELS, np.arange(int(sizes.max()) + LABELS)
        there = wide < (sizes + LABELS)[:, None]
        position = np.minimum(wide, sizes[:, None])  # both labels stand behind the text
        apart = (wide == (sizes + 1)[:, None])[..., None] & (wide == sizes[:, None])[:, None]  # yes does not see no
        own = (wide[:, None] >= wide) & there[:, None] & ~apart | np.eye(len(wide), dtype=bool)
        near = own & (position[..., None] - position[:, None] < model.attention.window)
        kind = np.where(wide < sizes[:, None], int(Kind.TEXT), int(Kind.LABEL))[there]

        def here(x: NDArray[Any], dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.from_numpy(x).to(self.device, dtype)

        def leaves(mask: NDArray[np.bool_]) -> SharedKeys:
            pad = np.where(there, starts[:, None] + wide, 0)
            flat, last = here(np.flatnonzero(there)), here(sizes + LABELS - 1)
            sequences = Leaves(slice(0, int(ends[-1])), here(pad), flat, last, None, here(mask, torch.bool))
            return SharedKeys([History(None, slice(0, 0), torch.zeros(0, 0, dtype=torch.bool), sequences)])

        words = np.concatenate([np.append(text, special) for text in texts])
        behind = Tokens(*self._with_sums(texts))
        found: dict[int, Tensor] = {}
        with self._precision():
            embedded = model.embed(Tokens(here(words, torch.int32)[None], here(kind, torch.int8)[None]))
            every, windowed = (BatchAttention(_Keeping(leaves(mask), found)) for mask in (own, near))
            attention = replace(every, windowed=windowed, window=model.attention.window)
            model.states(embedded, here(position[there])[None], attention)
            sums = model.embed(behind)[0][behind.kind[0] == Kind.SUM].float()
        tokens = torch.stack([found[number] for number in sorted(found)], 1)
        return States(np.append(0, ends), tokens, sums)

    def _with_sums(self, texts: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
        """Tokens and kinds of texts, each with [SUM] behind it, (1, L)."""
        sum_token = int(self.model.trained_tokens[0])
        words = np.concatenate([np.append(text, sum_token) for text in texts]).astype(np.int32)
        kind = np.full(len(words), int(Kind.TEXT), np.int8)
        kind[np.cumsum([len(text) + 1 for text in texts]) - 1] = int(Kind.SUM)
        return torch.from_numpy(words)[None].to(self.device), torch.from_numpy(kind)[None].to(self.device)

    @torch.no_grad()
    def score(self, requests: Sequence[Asked]) -> NDArray[np.float64]:
        """P(label = 1) of all candidates, at the cost of one token each and one read of every context."""
        offsets = self.offsets
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].candidates), len(requests[i].text)))
        found: list[NDArray[np.float64]] = [np.zeros(0)] * len(requests)
        longest = int(np.diff(offsets).max())
        group: list[int] = []
        for i in [*order, -1]:
            # Sizes ascend: the last one's are those of its group, which is padded to them.
            rows = len(requests[i].text) + len(requests[i].candidates)
            if group and (i < 0 or (len(group) + 1) * longest * rows > KEYS):
                logits = self._logits([requests[j] for j in group], offsets)
                probability = torch.sigmoid(logits.double()).cpu().numpy()
                for j, row in zip(group, probability, strict=True):
                    found[j] = row[: len(requests[j].candidates)]
                group = []
            group.append(i)
        return np.concatenate(found)

    def _logits(self, requests: Sequence[Asked], offsets: NDArray[np.int64]) -> Tensor:
        """(R, M) logits of requests with M candidates at most."""
        model = self.model
        contexts = [_keys(asked, offsets) for asked in requests]
        index, place, valid = (_padded(column) for column in zip(*contexts, strict=True))
        text = _padded(asked.candidates for asked in requests)
        lengths = offsets[text + 1] - offsets[text] - LABELS  # (R, M)
        behind = np.array([asked.behind for asked in requests])
        wide = np.arange(int(lengths.max()))
        mine = wide < lengths[..., None]  # (R, M, C)
        of_own = np.where(mine, offsets[text][..., None] + wide, 0)

        def here(x: NDArray[Any]) -> Tensor:
            return torch.from_numpy(x).to(self.device)

        position = here(behind[:, None] + lengths)
        embedded = self._sums(here(text))
        places, own_places = here(place), here(behind[:, None] + wide)
        seen = here(valid)[:, None].expand(-1, text.shape[1], -1)
        own = here(mine)
        near = _near(seen, own, position, places, own_places, model.attention.window)
        turned = [backbone.rotary(model.lm, embedded, x) for x in (places, own_places, position)]
        bias = self._bias(position, places, own_places)
        every, windowed = (
            BatchAttention(_Recalling(self, here(index), here(of_own), masks, bias, turned))
            for masks in ((seen, own), near)
        )
        with self._precision():
            attention = replace(every, windowed=windowed, window=model.attention.window)
            hidden = model.states(embedded, position, attention)
            return model.logits(hidden.flatten(0, 1)).view(text.shape)

    def _bias(self, position: Tensor, places: Tensor, own_places: Tensor) -> tuple[Tensor, Tensor] | None:
        """What ALiBi adds to scores, (R, H, M, S) and (R, H, M, C + 1); None where there is none."""
        if self.model.settings.sum_position == "rope":
            return None
        slopes = -self.model.slopes[:, None, None]
        past, own = ((position[:, :, None] - x[:, None]).clamp(min=0) for x in (places, own_places))
        own = torch.cat([own, own.new_zeros(*own.shape[:2], 1)], 2)
        return slopes * past[:, None], slopes * own[:, None]

    def take(self, index: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Un-rotated keys and values (.., H_kv, D) of tokens in a layer."""
        found = self._of_both(index, lambda part, at: part.tokens[at, layer], lambda part: int(part.offsets[-1]))
        return found[..., 0, :, :], found[..., 1, :, :]

    def _sums(self, text: Tensor) -> Tensor:
        return self._of_both(text, lambda part, at: part.sums[at], len)

    def _of_both(
        self, index: Tensor, look: Callable[[States, Tensor], Tensor], size: Callable[[States], int]
    ) -> Tensor:
        """What stands at an index of the stored states and, behind them, of those made here."""
        flat = index.reshape(-1)
        if self.stored is None or self.made is None:
            part = self.stored or self.made
            assert part is not None
            found = look(part, flat)
        else:
            behind = flat >= size(self.stored)
            later = look(self.made, (flat - size(self.stored))[behind])
            found = later.new_empty(len(flat), *later.shape[1:])
            found[behind], found[~behind] = later, look(self.stored, flat[~behind])
        return found.view(*index.shape, *found.shape[1:])

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None)


def _keys(asked: Asked, offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Tokens that a context consists of, their positions, and that they are there."""
    begin = offsets[asked.text]
    texts = offsets[asked.text + 1] - begin - LABELS
    lengths = texts + (asked.label >= 0)
    row = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(row)) - (np.cumsum(lengths) - lengths)[row]
    is_label = within == texts[row]
    return begin[row] + within + is_label * asked.label[row], asked.place[row] + within, np.ones(len(row), bool)


def _padded(columns: Iterable[NDArray[Any]]) -> NDArray[Any]:
    """Arrays as the rows of one, with zeros behind them; one wide at least."""
    columns = list(columns)
    whole = np.zeros((len(columns), max(1, *map(len, columns))), columns[0].dtype)
    for row, column in zip(whole, columns, strict=True):
        row[: len(column)] = column
    return whole


def _near(
    seen: Tensor, own: Tensor, position: Tensor, places: Tensor, own_places: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """``seen`` (R, M, S) and ``own`` (R, M, C) met with a layer's own window, as :func:`visibility.met` has it: nothing
    up to the last key that stands ``window`` or more before ``position`` (R, M)."""
    every = torch.cat([seen, own], 2)
    far = every & (position[..., None] - torch.cat([places, own_places], 1)[:, None] >= window)
    near = every & ~far.flip(2).cummax(2).values.flip(2)
    return near[..., : seen.shape[2]], near[..., seen.shape[2] :]


@dataclass
class _Keeping:
    """An attention backend that keeps un-rotated keys, and values, of all tokens in every layer."""

    inner: Backend
    found: dict[int, Tensor]  # by layer, (tokens, 2, H_kv, D)

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        assert layer is not None
        pair = torch.stack([layer.unrotated(key)[0].to(value.dtype), value[0]])
        self.found[module.layer_idx] = pair.permute(2, 0, 1, 3)
        return self.inner.attend(module, query, key, value, scale, layer)


@dataclass(frozen=True)
class _Recalling:
    """An attention backend of [SUM]s (R, M): each reads kept keys and values of its request's context and of its own
    text, and its own."""

    states: ItemStates
    context: Tensor  # (R, S) tokens of the states
    own: Tensor  # (R, M, C)
    masks: tuple[Tensor, Tensor]  # (R, M, S), (R, M, C)
    bias: tuple[Tensor, Tensor] | None
    turned: list[backbone.Rotary]  # of the context, of own texts, of the [SUM]s

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        number, (r, kv, m, _) = module.layer_idx, key.shape
        past, past_value = (x.transpose(1, 2) for x in self.states.take(self.context, number))
        mine, mine_value = (x.permute(0, 3, 1, 2, 4) for x in self.states.take(self.own, number))  # (R, H_kv, M, C, D)
        if self.states.model.settings.sum_position == "nope_alibi":
            query, key = (unrotate(x, *self.turned[2][number]).to(past.dtype) for x in (query, key))
        else:
            past = rotate(past, *self.turned[0][number]).to(key.dtype)
            mine = rotate(mine.flatten(1, 2), *self.turned[1][number]).to(key.dtype).unflatten(1, (kv, m))
        mine, mine_value = (torch.cat([x, y[:, :, :, None]], 3) for x, y in ((mine, key), (mine_value, value)))
        seen, own = self.masks
        own = torch.cat([own, own.new_ones(r, m, 1)], 2)
        masks = _by_head(seen, kv), _by_head(own, kv)
        bias = None
        if self.bias is not None:
            past_bias, own_bias = (x.unflatten(1, (kv, -1)).flatten(0, 1)[:, :, :, None] for x in self.bias)
            bias = past_bias.to(query.dtype), own_bias.to(query.dtype)
        out = attend(
            query.flatten(0, 1)[:, :, None],
            (past.flatten(0, 1), past_value.flatten(0, 1)),
            (mine.flatten(0, 1), mine_value.flatten(0, 1)),
            scale,
            masks,
            bias,
        )
        return out[:, :, 0].unflatten(0, (r, -1))


def _by_head(mask: Tensor, heads: int) -> Tensor:
    """(R, M, K) -> (R H_kv, 1, M, 1, K)."""
    return mask[:, None].expand(-1, heads, -1, -1).flatten(0, 1)[:, None, :, None]
