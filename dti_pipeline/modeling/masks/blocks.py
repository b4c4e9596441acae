"""FlexAttention's block masks of a batch: which blocks of keys each block of queries reads.

Intervals give the lists directly: a block is skipped, evaluated pair by pair, or known to be visible as a whole. Cost:
one comparison a query and block of keys, L² / 128 of them; no L x L matrix is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dti_pipeline.modeling.masks.visibility import Intervals
from dti_pipeline.modeling.speed.compiler import not_compiled

#: Of batch, head, row of queries and key: whether that pair is visible.
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class BlockMasks:
    """FlexAttention block masks for batches of one shape.

    The intervals live in buffers that each batch overwrites. The mask function is the same Python object every time, so
    that a compiled step is compiled once; a closure over fresh tensors would recompile at each batch.

    With GQA packing, ``heads`` that share their keys are rows of one block of queries, those of a token behind each
    other. A block then holds fewer tokens, which have more of their keys in common.

    Rows of L tokens are padded to whole blocks (``padded``) by tokens that see nothing and are seen by none: kernels
    would look at the ends of rows in every block of a mask that is no multiple of 128.
    """

    def __init__(
        self,
        batch: int,
        length: int,
        device: torch.device,
        has_prefix: bool,
        block_size: int = 128,
        heads: int = 1,
    ) -> None:
        self.block_size = block_size
        self.has_prefix = has_prefix
        self.heads = heads
        self.padded = -(-length // block_size) * block_size
        self._first, self._prompt, self._prompt_text = (
            torch.zeros(batch, self.padded, dtype=torch.int32, device=device) for _ in range(3)
        )
        self._first.fill_(self.padded)
        self._mask = self._make(batch, device)

    def _make(self, batch: int, device: torch.device) -> MaskFunction:
        """The mask function, and the other buffers that it reads."""
        self._is_sum = torch.zeros(batch, self.padded, dtype=torch.bool, device=device)
        first, prompt, prompt_text, is_sum = self._first, self._prompt, self._prompt_text, self._is_sum
        heads = self.heads

        def window(b: Tensor, h: Tensor, row: Tensor, k: Tensor) -> Tensor:
            q = row // heads
            return (k <= q) & (k >= first[b, q]) & (~is_sum[b, k] | (k == q))

        def window_and_prefix(b: Tensor, h: Tensor, row: Tensor, k: Tensor) -> Tensor:
            q = row // heads
            prefix = (k <= q) & (k >= prompt[b, q]) & (k < prompt_text[b, q])
            return (((k <= q) & (k >= first[b, q])) | prefix) & (~is_sum[b, k] | (k == q))

        return window_and_prefix if self.has_prefix else window

    def build(self, i: Intervals, fused: Callable[..., Any] = not_compiled) -> BlockMask:
        """The block mask of one batch, (B, 1, padded heads, padded), valid until the next call. ``fused`` compiles a
        function."""
        lists = fused(type(self).write)(self, i)
        sizes, lengths = (self.block_size, self.block_size), (self.padded * self.heads, self.padded)
        return BlockMask(lengths, **lists._asdict(), BLOCK_SIZE=sizes, mask_mod=self._mask)

    def write(self, i: Intervals) -> BlockLists:
        """Put the numbers of a batch where the mask function reads them, and list its blocks."""
        written = Intervals(self._first, self._prompt, self._prompt_text, self._is_sum)
        overwrite(written, i)
        return block_lists(written, self.block_size // self.heads, self.block_size, self.has_prefix)


def overwrite(buffers: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
    """The first L of each (B, padded) with (B, L)."""
    for buffer, of_batch in zip(buffers, numbers, strict=True):
        buffer[:, : of_batch.shape[1]].copy_(of_batch)


class BlockLists(NamedTuple):
    """The blocks of keys that each block of queries reads, and the other way round, as FlexAttention takes them: how
    many (B, 1, blocks), and their numbers, these first, (B, 1, blocks, blocks). In full ones every pair is visible."""

    kv_num_blocks: Tensor
    kv_indices: Tensor
    full_kv_num_blocks: Tensor
    full_kv_indices: Tensor
    q_num_blocks: Tensor
    q_indices: Tensor
    full_q_num_blocks: Tensor
    full_q_indices: Tensor


class Stretches(NamedTuple):
    """Which keys a query sees, all (B, L): ``first .. last``, and ``prompt .. prompt_text`` as far as ``last``."""

    first: Tensor
    last: Tensor
    prompt: Tensor
    prompt_text: Tensor


def block_lists(i: Intervals, queries: int, keys: int, has_prefix: bool) -> BlockLists:
    """Of blocks of so many ``queries`` and ``keys``, both of which divide L."""
    slot = torch.arange(i.first.shape[1], device=i.first.device).expand_as(i.first)
    return listed_blocks(Stretches(i.first, slot, i.prompt, i.prompt_text), i.is_sum, queries, keys, has_prefix)


def listed_blocks(i: Stretches, hidden: Tensor | None, queries: int, keys: int, has_prefix: bool) -> BlockLists:
    """The same, where keys that are ``hidden`` (B, L) are seen by none but themselves. Cost: a look at each query and
    block, L² / keys; the pairs themselves are looked at by the kernel, and in full blocks by nobody."""
    begin = torch.arange(0, i.first.shape[1], keys, device=i.first.device)  # of each block of keys
    end = begin + keys
    first, last = i.first[:, :, None], i.last[:, :, None]
    some = (first < end) & (last >= begin)
    if has_prefix:
        some = some | ((i.prompt[:, :, None] < end) & (i.prompt_text[:, :, None] > begin) & (last >= begin))
    every = (first <= begin) & (last >= end - 1)
    if hidden is not None:
        every = every & ~hidden.unflatten(1, (-1, keys)).any(2)[:, None]
    some, every = some.unflatten(1, (-1, queries)).any(2), every.unflatten(1, (-1, queries)).all(2)
    partial = some & ~every
    return BlockLists(
        *_listed(partial), *_listed(every), *_listed(partial.transpose(1, 2)), *_listed(every.transpose(1, 2))
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, blocks of queries, of keys) -> how many of each row are True, and which, these first; with one head.

    Contiguous, whatever ``blocks`` is: FlexAttention's kernels take that for granted and check nothing.
    """
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None].contiguous(), order.int()[:, None].contiguous()
