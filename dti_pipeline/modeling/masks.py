"""Who sees whom: each paradigm as a dense, readable mask (the specification), and as one interval a query (its twin).

The dense form, :func:`visible`, is written as the paradigms are told. The interval form, :func:`intervals`, says the
same in a few numbers a query, which is what FlexAttention can evaluate and skip blocks by. Tests hold them equal.

    paradigm         a text or label token of interaction i sees   [SUM] of target i sees
    sliding_window   everything before it in its prompt            the same
    dti              interactions i-n .. i                         interactions i-n .. i
    dti_growing      everything before it in its prompt            the same
    dti_isolated     its own interaction                           interactions i-n .. i

always causally, within its own prompt, and never a [SUM] other than itself. The prefix is seen by its whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dti_pipeline.modeling.compiler import as_it_is
from dti_pipeline.packing.layout import Kind

#: As plain numbers: torch's compiler takes `tensor == Kind.SUM` for False.
PAD, PREFIX, TEXT, SUM, LABEL = (int(kind) for kind in (Kind.PAD, Kind.PREFIX, Kind.TEXT, Kind.SUM, Kind.LABEL))


@dataclass(frozen=True)
class Tokens:
    """The layout of a batch as tensors of shape (B, L); see :class:`dti_pipeline.packing.layout.Layout`."""

    document: Tensor
    interaction: Tensor
    kind: Tensor


def visible(tokens: Tokens, paradigm: str, context: int) -> Tensor:
    """Dense mask (B, L, L), True where query (dim 1) sees key (dim 2). Padding sees itself only. Memory: B L² bytes."""
    length = tokens.kind.shape[1]
    slot = torch.arange(length, device=tokens.kind.device)
    itself = slot[:, None] == slot[None, :]
    causal = slot[:, None] >= slot[None, :]

    query, key = _pairs(tokens.document)
    same_prompt = (query == key) & (_query(tokens.kind) != Kind.PAD)
    query, key = _pairs(tokens.interaction)
    within_window = key >= query - context
    own_interaction = key == query
    query_is_sum = _query(tokens.kind) == Kind.SUM
    key_is_sum = _key(tokens.kind) == Kind.SUM
    key_is_prefix = _key(tokens.kind) == Kind.PREFIX

    if paradigm in ("sliding_window", "dti_growing"):
        reach = torch.ones_like(within_window)
    elif paradigm == "dti":
        reach = within_window
    elif paradigm == "dti_isolated":
        reach = torch.where(query_is_sum, within_window, own_interaction)
    else:
        raise ValueError(f"unknown paradigm {paradigm!r}")
    return (same_prompt & causal & (reach | key_is_prefix) & ~key_is_sum) | itself


def _query(x: Tensor) -> Tensor:
    return x[:, :, None]


def _key(x: Tensor) -> Tensor:
    return x[:, None, :]


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    return _query(x), _key(x)


class Intervals(NamedTuple):
    """The same mask as numbers a query: it sees slots ``first .. itself`` and ``prompt .. prompt_text`` (the prefix),
    less every [SUM] but itself. All (B, L)."""

    first: Tensor
    prompt: Tensor  # first slot of the prompt
    prompt_text: Tensor  # first slot after the prefix
    is_sum: Tensor

    def reach(self) -> Tensor:
        """(B, L) the earliest slot each query can see."""
        has_prefix = self.prompt_text > self.prompt
        return torch.where(has_prefix, self.prompt, self.first)

    def blind_sums(self) -> Intervals:
        """The same, but that [SUM]s see nothing, not even themselves."""
        nothing = self.first.shape[1]
        first, prompt_text = torch.where(self.is_sum, nothing, self.first), self.prompt_text
        return self._replace(first=first, prompt_text=torch.where(self.is_sum, self.prompt, prompt_text))

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Which of the slots ``query`` see which of the slots ``key``: two shapes (B, ..) that broadcast."""
        first, prompt, prompt_text = (at(x, query) for x in (self.first, self.prompt, self.prompt_text))
        window = (key <= query) & (key >= first)
        prefix = (key <= query) & (key >= prompt) & (key < prompt_text)
        return (window | prefix) & (~at(self.is_sum, key) | (key == query))


def at(x: Tensor, slots: Tensor) -> Tensor:
    """``x`` (B, L) at ``slots`` (B, ..)."""
    return x.gather(1, slots.reshape(len(slots), -1)).view(slots.shape)


def intervals(tokens: Tokens, paradigm: str, context: int) -> Intervals:
    """The mask of ``paradigm`` as intervals. Cost: four binary searches a token; no L x L matrix is made."""
    document, interaction = tokens.document.long(), tokens.interaction.long()
    slot = torch.arange(document.shape[1], device=document.device).expand_as(document)
    is_sum, is_pad = tokens.kind == SUM, tokens.kind == PAD
    # (document, interaction) ascends along a row, so the first slot of any interaction is a binary search away.
    width = document.shape[1] + 2
    key = (document * width + interaction + 1).contiguous()

    def start_of(target: Tensor) -> Tensor:
        return torch.searchsorted(key, (document * width + target + 1).contiguous())

    prompt, prompt_text = start_of(torch.full_like(interaction, -1)), start_of(torch.zeros_like(interaction))
    if paradigm in ("sliding_window", "dti_growing"):
        first = prompt
    elif paradigm == "dti":
        first = start_of((interaction - context).clamp(min=0))
    elif paradigm == "dti_isolated":
        first = torch.where(is_sum, start_of((interaction - context).clamp(min=0)), start_of(interaction))
    else:
        raise ValueError(f"unknown paradigm {paradigm!r}")
    first = torch.where(tokens.kind == PREFIX, prompt, first)
    first, prompt, prompt_text = (torch.where(is_pad, slot, x) for x in (first, prompt, prompt_text))
    return Intervals(first, prompt, prompt_text, is_sum)


def dense(i: Intervals) -> Tensor:
    """The intervals written out: the twin of :func:`visible`, (B, L, L)."""
    slot = torch.arange(i.first.shape[1], device=i.first.device).expand_as(i.first)
    return i.sees(_query(slot), _key(slot))


#: Of batch, head, row of queries and key: whether that pair is visible.
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class BlockMasks:
    """FlexAttention block masks of batches of one shape.

    The intervals live in buffers that are overwritten for each batch: the mask function is the same Python object
    every time, so that a compiled step is compiled once. (A closure over fresh tensors recompiles at each batch.)

    ``heads`` of a group that share their keys can be rows of one block of queries, those of a token behind each other:
    a block is fewer tokens then, which have more of the keys that they see in common.

    Masks are of whole blocks: of L tokens, filled up to ``padded`` by some that see nothing and are seen by none.
    FlexAttention's kernels would look at the ends of rows in every block of one that is no multiple of 128.
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
        self._mask = self._made(batch, device)

    def _made(self, batch: int, device: torch.device) -> MaskFunction:
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

    def build(self, i: Intervals, fused: Callable[..., Any] = as_it_is) -> BlockMask:
        """The block mask of one batch, (B, 1, padded heads, padded). It is valid until the next call. ``fused``
        compiles a function."""
        lists = fused(type(self).write)(self, i)
        sizes, lengths = (self.block_size, self.block_size), (self.padded * self.heads, self.padded)
        return BlockMask(lengths, **lists._asdict(), BLOCK_SIZE=sizes, mask_mod=self._mask)

    def write(self, i: Intervals) -> BlockLists:
        """Put the numbers of a batch where the mask function reads them; its blocks."""
        written = Intervals(self._first, self._prompt, self._prompt_text, self._is_sum)
        overwrite(written, i)
        return block_lists(written, self.block_size // self.heads, self.block_size, self.has_prefix)


def overwrite(buffers: Sequence[Tensor], numbers: Sequence[Tensor]) -> None:
    """The first L of each (B, padded) with (B, L)."""
    for buffer, of_batch in zip(buffers, numbers, strict=True):
        buffer[:, : of_batch.shape[1]].copy_(of_batch)


class BlockLists(NamedTuple):
    """Which blocks of keys each block of queries looks at, and the other way round, as FlexAttention wants them: how
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
    first, last = _query(i.first), _query(i.last)
    some = (first < end) & (last >= begin)
    if has_prefix:
        some = some | ((_query(i.prompt) < end) & (_query(i.prompt_text) > begin) & (last >= begin))
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
