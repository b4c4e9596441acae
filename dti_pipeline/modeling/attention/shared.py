"""Attention of many short sequences that read one history's keys beside their own: candidates of one request.

In a packed row each candidate's queries would meet the keys of all candidates before it, under a mask. Here they meet
the history's, which are there once, and their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums.rows import SumRows

#: Scores of a head group that are computed at a time: bounds memory, and fits a CPU's cache.
SCORES = 1 << 19


@dataclass(frozen=True)
class Leaves:
    """m sequences of one pass that read the same keys. Their tokens lie anywhere in the pass."""

    tokens: slice  # theirs in the pass
    pad: Tensor  # (m, C) which token of the pass stands at each place; any where there is none
    place: Tensor  # (tokens,) i * C + place of each token of sequence i
    last: Tensor  # (m,) place of each one's last token, its [SUM]
    seen: Tensor | None  # (1, 1, S), or (m, C, S), bool: which shared keys each token sees; None: all
    own: Tensor  # (m, C, C) bool: which of its sequence's own tokens

    def masks(self) -> tuple[Tensor | None, Tensor]:
        return None if self.seen is None else self.seen[None, None], self.own[None, None]

    def of_last(self) -> tuple[Tensor | None, Tensor]:
        """Masks of the last tokens alone."""
        each = torch.arange(len(self.last), device=self.last.device)
        seen = self.seen if self.seen is None or self.seen.shape[1] == 1 else self.seen[each, self.last][:, None]
        return None if seen is None else seen[None, None], self.own[each, self.last][None, None, :, None]


def attend(
    query: Tensor,
    shared: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    scale: float,
    seen: tuple[Tensor | None, Tensor],
    bias: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(H, m, Q, D) of queries (H, m, Q, D) over ``shared`` keys and values (H_kv, S, D) and their ``own``
    (H_kv, m, C, D).

    ``seen``: bool, which of the shared (None: all) and of the own keys; ``bias`` is added to their scores. Both have
    five dimensions that broadcast with (H_kv, G, m, Q, S) and (H_kv, G, m, Q, C). A query sees one of its own keys at
    least. Cost: S + C scores a query and head; softmax in fp32.
    """
    heads, m, width, _ = query.shape
    kv, s, _ = shared[0].shape
    step = max(1, SCORES // max(1, heads * width * (s + own[0].shape[2])))
    if step < m:
        parts = []
        for first in range(0, m, step):
            part = slice(first, first + step)

            def of(x: Tensor, part: slice = part) -> Tensor:
                return x if x.shape[2] == 1 else x[:, :, part]

            less = None if seen[0] is None else of(seen[0]), of(seen[1])
            added = None if bias is None else (of(bias[0]), of(bias[1]))
            parts.append(attend(query[:, part], shared, (own[0][:, part], own[1][:, part]), scale, less, added))
        return torch.cat(parts, 1)
    grouped = query.unflatten(0, (kv, -1)) * scale  # (H_kv, G, m, Q, D)
    of_shared = (grouped.flatten(1, 3) @ shared[0].transpose(1, 2)).view(*grouped.shape[:4], s)
    of_own = torch.einsum("kgmqd,kmcd->kgmqc", grouped, own[0])
    if bias is not None:
        of_shared, of_own = of_shared + bias[0], of_own + bias[1]
    if seen[0] is not None:
        of_shared = of_shared.masked_fill(~seen[0], float("-inf"))
    of_own = of_own.masked_fill(~seen[1], float("-inf"))
    weight = torch.cat([of_shared, of_own], -1).float().softmax(-1).to(query.dtype)
    out = (weight[..., :s].flatten(1, 3) @ shared[1]).view(grouped.shape)
    return (out + torch.einsum("kgmqc,kmcd->kgmqd", weight[..., s:], own[1])).flatten(0, 1)


@dataclass(frozen=True)
class History:
    """Keys and values that sequences of a pass share: kept ones, and then those of tokens of the pass itself."""

    kept: tuple[dict[int, Tensor], dict[int, Tensor]] | None  # keys and values by layer, (H_kv, K, D)
    new: slice  # tokens of the pass, in order
    seen: Tensor  # (N, K + N) bool: which of all these each new token sees
    leaves: Leaves | None  # the sequences behind it


@dataclass
class SharedKeys:
    """The attention backend of a pass of one row: histories, each followed by its sequences. It keeps the histories'
    keys and values of each layer."""

    histories: list[History]
    keys: list[dict[int, Tensor]] = field(init=False)  # of each history, by layer, (H_kv, K + N, D)
    values: list[dict[int, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self.keys, self.values = [{} for _ in self.histories], [{} for _ in self.histories]

    def attend(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        """Queries (1, H, L, D), keys and values (1, H_kv, L, D) -> (1, H, L, D)."""
        out = torch.empty_like(query[0])
        for history, (keys, values) in zip(self.histories, self._remembered(module, key[0], value[0]), strict=True):
            new = history.new
            if new.stop > new.start:
                kept = (keys[:, : -(new.stop - new.start)], values[:, : -(new.stop - new.start)])
                size = kept[0].shape[1]
                own = (key[0, :, None, new], value[0, :, None, new])
                past, here = history.seen[None, None, None, :, :size], history.seen[None, None, None, :, size:]
                masks = past if size else None, here
                out[:, new] = attend(query[0, :, None, new], kept, own, scale, masks)[:, 0]
            leaves = history.leaves
            if leaves is not None:
                own = (key[0][:, leaves.pad], value[0][:, leaves.pad])
                found = attend(query[0][:, leaves.pad], (keys, values), own, scale, leaves.masks())
                out[:, leaves.tokens] = found.flatten(1, 2)[:, leaves.place]
        return out[None]

    def at_sums(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, rows: SumRows, scale: float, layer: LayerInput
    ) -> Tensor:
        """The :data:`SumOperator` of the pass, (1, H, T, D): the last layer at [SUM]s only."""
        parts, first = [], 0
        for history, shared in zip(self.histories, self._remembered(module, key[0], value[0]), strict=True):
            leaves = history.leaves
            if leaves is not None:
                stop = first + len(leaves.last)
                own = (key[0][:, leaves.pad], value[0][:, leaves.pad])
                parts.append(attend(query[0, :, first:stop, None], shared, own, scale, leaves.of_last())[:, :, 0])
                first = stop
        return torch.cat(parts, 1)[None]

    def _remembered(self, module: Any, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each history in this layer, those of the pass behind the kept ones."""
        number = module.layer_idx
        found = []
        for history, keys, values in zip(self.histories, self.keys, self.values, strict=True):
            new_key, new_value = key[:, history.new], value[:, history.new]
            if history.kept is not None:
                new_key = torch.cat([history.kept[0][number].to(key.dtype), new_key], 1)
                new_value = torch.cat([history.kept[1][number].to(key.dtype), new_value], 1)
            keys[number], values[number] = new_key, new_value
            found.append((new_key, new_value))
        return found
