"""Attention backends: SDPA in bands for a CPU, FlexAttention for CUDA, and FlexAttention over reordered keys.

Each obeys the same intervals. Which one a batch gets is decided in
:mod:`dti_pipeline.modeling.network.batch_attention`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.reordered import reorder, with_own_key, with_rows
from dti_pipeline.modeling.attention.sums.rows import SumRows
from dti_pipeline.modeling.masks.reordered_blocks import ReorderedKeys
from dti_pipeline.modeling.masks.visibility import Intervals
from dti_pipeline.modeling.speed.compiler import allow_graphs

#: Queries of a band. Smaller bands skip more keys and cost more calls.
BAND = 64
#: Rows of a block of queries in FlexAttention's masks.
ROWS = 128
#: Options of FlexAttention's kernels. Named, since torch would choose its decoding kernel for rows of less than 128
#: tokens, and has that for few masks and sizes.
TRITON = {"BACKEND": "TRITON"}
#: The same on Hopper, for bfloat16 heads, by width: the fastest of those tried in benchmarks/kernels.py. Elsewhere
#: torch chooses. ROWS_GUARANTEED_SAFE must stay off: a query may see nothing in the first block that it shares.
HOPPER = {
    128: TRITON | {
        "fwd_BLOCK_M": 128, "fwd_BLOCK_N": 128, "fwd_num_warps": 8, "fwd_num_stages": 2,
        "bwd_BLOCK_M1": 64, "bwd_BLOCK_N1": 128, "bwd_BLOCK_M2": 128, "bwd_BLOCK_N2": 64,
        "bwd_num_warps": 8, "bwd_num_stages": 3,
    },
    32: TRITON | {
        "bwd_BLOCK_M1": 32, "bwd_BLOCK_N1": 64, "bwd_BLOCK_M2": 64, "bwd_BLOCK_N2": 32,
        "bwd_num_warps": 4, "bwd_num_stages": 3,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Banded:
    """SDPA, band by band of queries, each with only the keys that some query of the band sees.

    Cost: L (band + longest reach) scores a head instead of L².
    """

    bands: tuple[tuple[int, int, Tensor], ...]  # first query, first key, mask (B, 1, queries, keys)

    @classmethod
    def of(cls, i: Intervals) -> Banded:
        reach, length = i.reach(), i.first.shape[1]
        slim = Intervals(i.first.int(), i.prompt.int(), i.prompt_text.int(), i.is_sum)
        has_prefix = bool((i.prompt_text > i.prompt).any())
        starts = [(q, int(reach[:, q : q + BAND].min())) for q in range(0, length, BAND)]
        return cls(tuple((q, k, _mask(slim, q, k, has_prefix)) for q, k in starts))

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        ranges = [(k, k + mask.shape[3]) for _, k, mask in self.bands]
        keys, values = ranges_of(key, ranges), ranges_of(value, ranges)
        parts = [
            scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
            )
            for queries, keys, values, (_, _, mask) in zip(query.split(BAND, 2), keys, values, self.bands, strict=True)
        ]
        return torch.cat(parts, dim=2)


def _mask(i: Intervals, q: int, k: int, has_prefix: bool) -> Tensor:
    """:meth:`Intervals.sees` of the band's queries from q, and the keys from k to its end: (B, 1, queries, keys)."""
    band = slice(q, q + BAND)
    first, prompt, prompt_text = (x[:, band, None] for x in i[:3])
    key = torch.arange(k, q + first.shape[1], device=first.device, dtype=first.dtype)
    seen = key >= first
    if has_prefix:
        seen |= (key >= prompt) & (key < prompt_text)
    seen &= ~i.is_sum[:, None, k : band.stop]
    own = seen[:, :, q - k :]  # all keys before the band's own are before its queries
    own.tril_()
    own.diagonal(dim1=1, dim2=2).fill_(True)
    return seen[:, None]


def ranges_of(x: Tensor, ranges: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Ranges of slots of ``x`` (B, H, L, D). Their gradients are added up in one tensor, where autograd would make as
    large a one for each range."""
    return _Ranges.apply(x, ranges)


class _Ranges(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ranges):
        ctx.ranges = ranges
        ctx.like = x.shape
        return tuple(x[:, :, start:stop] for start, stop in ranges)

    @staticmethod
    def backward(ctx, *gradients):
        whole = gradients[0].new_zeros(ctx.like)
        for (start, stop), gradient in zip(ctx.ranges, gradients, strict=True):
            whole[:, :, start:stop] += gradient
        return whole, None


@dataclass(frozen=True)
class Flex:
    """FlexAttention under a block mask. Heads that share their keys may be rows of one block of queries (GQA packing):
    ``block_mask`` then has so many rows a token."""

    block_mask: BlockMask
    options: dict[str, Any]  # of the kernels

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        length, (rows, padded) = query.shape[2], self.block_mask.seq_lengths
        heads = rows // padded  # BlockMasks.heads
        assert query.shape[1] // key.shape[1] % heads == 0, "heads of a block that do not share their keys"
        query = _padded(query, padded).unflatten(1, (-1, heads)).transpose(2, 3).flatten(2, 3)
        out = self._packed(query, key, value, scale, heads, padded)
        return out.unflatten(2, (-1, heads)).transpose(2, 3).flatten(1, 2)[:, :, :length]

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, scale: float, heads: int, padded: int) -> Tensor:
        """Queries (B, H / heads, padded x heads, D) -> as many."""
        return self._flex(query, _padded(key, padded), _padded(value, padded), scale)

    def _flex(self, query: Tensor, key: Tensor, value: Tensor, scale: float, **options: Any) -> Any:
        # Uncompiled, FlexAttention writes out all L x L scores; in a compiled layer it is compiled with the layer.
        attention: Any = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention()
        return attention(
            query,
            key,
            value,
            block_mask=self.block_mask,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
            kernel_options=self.options,
            **options,
        )


@dataclass(frozen=True)
class ReorderedFlex(Flex):
    """FlexAttention over a row's texts and labels, with the [SUM]s' keys moved behind them and shown to nobody.

    So most blocks are full. A [SUM] under the mask alone still sees itself: its own key is added to its softmax
    afterwards. [SUM]s with a rule of their own are replaced by the caller.
    """

    keys: ReorderedKeys
    sums: SumRows

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, scale: float, heads: int, padded: int) -> Tensor:
        key, value = reorder(key, self.keys), reorder(value, self.keys)
        if self.sums.have_own_rule:
            return self._flex(query, key, value, scale)
        rows = (self.sums.slot[:, :, None] * heads + torch.arange(heads, device=query.device)).flatten(1)
        query, own_query = with_rows(query, rows)
        place = self.keys.place.gather(1, self.sums.slot)
        (key, own_key), (value, own_value) = with_rows(key, place), with_rows(value, place)
        repeats = query.shape[1] // key.shape[1]
        own_key, own_value = (x.repeat_interleave(repeats, 1).repeat_interleave(heads, 2) for x in (own_key, own_value))
        score = (own_query.float() * own_key.float()).sum(-1) * scale
        out, of_softmax = self._flex(query, key, value, scale, return_aux=AuxRequest(lse=True))
        return with_own_key(out, of_softmax.lse, score, own_value, rows, self.sums.valid.repeat_interleave(heads, 1))


@cache
def compiled_flex_attention() -> Any:
    """FlexAttention outside a compiled layer. Made when first used: loading the compiler takes over a second."""
    allow_graphs()
    return torch.compile(flex_attention, dynamic=False)


def gqa_packing(stack: Iterable[Any]) -> int:
    """How many heads can be rows of one block of queries in all of these layers: those that share their keys, in
    numbers that divide the block."""
    groups = (int(getattr(getattr(layer, "self_attn", None), "num_key_value_groups", 1)) for layer in stack)
    return gcd(ROWS, *groups)


def kernel_options(device: torch.device, dtype: torch.dtype, head_width: int) -> dict[str, Any]:
    """FlexAttention's options for that card and those heads."""
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
    return HOPPER.get(head_width, TRITON) if hopper and dtype == torch.bfloat16 else TRITON


def _padded(x: Tensor, length: int) -> Tensor:
    """(B, H, L, D) -> (B, H, ``length``, D), by zeros."""
    missing = length - x.shape[2]
    return functional.pad(x, (0, 0, 0, missing)) if missing else x
