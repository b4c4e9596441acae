"""FlexAttention's block masks over keys among which no [SUM] stands.

Nobody sees a [SUM] but itself. With texts and labels first, in their order, and the [SUM]s behind them, a query sees
one stretch of keys, and most blocks of it as a whole (:mod:`dti_pipeline.modeling.attention.reordered`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dti_pipeline.modeling.masks.blocks import (
    BlockLists,
    BlockMasks,
    MaskFunction,
    Stretches,
    listed_blocks,
    overwrite,
)
from dti_pipeline.modeling.masks.visibility import Intervals


class ReorderedKeys(NamedTuple):
    """Where the keys of a batch stand; int64."""

    order: Tensor  # (B, padded) slots: of texts and labels, then of [SUM]s, then any
    place: Tensor  # (B, L) where each slot's key stands


def reordered(i: Intervals) -> tuple[Stretches, ReorderedKeys]:
    """The keys' new order, and the stretch of it that each query sees (a [SUM] without itself)."""
    slot = torch.arange(i.first.shape[1], device=i.first.device).expand_as(i.first)
    is_text = ~i.is_sum
    # Texts before each slot, and before the row's end: so many also stand before that slot's key in the new order.
    before = functional.pad(is_text.cumsum(1), (1, 0))
    first, prompt, prompt_text = (before.gather(1, x.long()) for x in (i.first, i.prompt, i.prompt_text))
    place = torch.where(i.is_sum, before[:, -1:] + slot - before[:, :-1], before[:, :-1])
    order = torch.empty_like(place).scatter(1, place, slot)
    return Stretches(first, before[:, 1:] - 1, prompt, prompt_text), ReorderedKeys(order, place)


class ReorderedBlockMasks(BlockMasks):
    """Block masks over reordered keys; after ``build``, ``keys`` says where they stand."""

    keys: ReorderedKeys

    def _make(self, batch: int, device: torch.device) -> MaskFunction:
        self._last = torch.full((batch, self.padded), -1, dtype=torch.int32, device=device)
        first, last, prompt, prompt_text = self._first, self._last, self._prompt, self._prompt_text
        heads = self.heads

        def window(b: Tensor, h: Tensor, row: Tensor, k: Tensor) -> Tensor:
            q = row // heads
            return (k <= last[b, q]) & (k >= first[b, q])

        def window_and_prefix(b: Tensor, h: Tensor, row: Tensor, k: Tensor) -> Tensor:
            q = row // heads
            return (k <= last[b, q]) & ((k >= first[b, q]) | ((k >= prompt[b, q]) & (k < prompt_text[b, q])))

        return window_and_prefix if self.has_prefix else window

    def write(self, i: Intervals) -> BlockLists:
        stretches, (order, place) = reordered(i)
        self.keys = ReorderedKeys(functional.pad(order, (0, self.padded - order.shape[1])), place)
        written = Stretches(self._first, self._last, self._prompt, self._prompt_text)
        overwrite(written, stretches)
        return listed_blocks(written, None, self.block_size // self.heads, self.block_size, self.has_prefix)
