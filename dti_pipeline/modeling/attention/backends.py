"""Attention backends: one fused kernel on CUDA, and torch's own attention in bands wherever that cannot be had.

Both obey the same intervals. Which one a batch gets is decided in
:mod:`dti_pipeline.modeling.network.batch_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dti_pipeline.modeling.attention.fused import attend_intervals
from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.masks.visibility import LABEL, SUM, Intervals, last_readers

#: Queries of a band. Smaller bands skip more keys and cost more calls.
BAND = 64


@dataclass(frozen=True)
class Fused:
    """The kernels of :mod:`dti_pipeline.modeling.attention.fused`, which read the intervals as they are."""

    facts: tuple[Tensor, ...]
    has_prefix: bool
    late: bool  # False: no query of theirs is :meth:`Intervals.late`

    @classmethod
    def of(cls, i: Intervals, has_prefix: bool, late: bool) -> Fused:
        return cls(tuple(x.int() for x in (*i, last_readers(i, has_prefix))), has_prefix, late)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        by_token = [x.transpose(1, 2).to(dtype) for x in (query, key, value)]
        out, _ = attend_intervals(*by_token, list(self.facts), scale, self.has_prefix, self.late)
        return out.transpose(1, 2)


@dataclass(frozen=True)
class Banded:
    """SDPA, band by band of queries, each with only the keys that some query of the band sees.

    Cost: L (band + longest reach) scores a head instead of L².
    """

    bands: tuple[tuple[int, int, Tensor], ...]  # first query, first key, mask (B, 1, queries, keys)

    @classmethod
    def of(cls, i: Intervals) -> Banded:
        reach, length = i.reach(), i.first.shape[1]
        slim = Intervals._make([*(x.int() for x in i[:-1]), i.kind])
        has_prefix, late = bool((i.prompt_text > i.prompt).any()), i.late()
        starts = [(q, int(reach[:, q : q + BAND].min())) for q in range(0, length, BAND)]
        return cls(tuple((q, k, _mask(slim, q, k, has_prefix, late)) for q, k in starts))

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        ranges = [(k, k + mask.shape[3]) for _, k, mask in self.bands]
        return in_bands(query, key, value, ranges, [mask for _, _, mask in self.bands], BAND, scale)


def in_bands(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ranges: Sequence[tuple[int, int]],
    masks: Sequence[Tensor],
    band: int,
    scale: float,
) -> Tensor:
    """SDPA (B, H, R, D) of ``band`` queries at a time, each band over its range of keys under its mask."""
    parts = [
        scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        for queries, keys, values, mask in zip(
            query.split(band, 2), _ranges_of(key, ranges), _ranges_of(value, ranges), masks, strict=True
        )
    ]
    return torch.cat(parts, dim=2)


def _mask(i: Intervals, q: int, k: int, has_prefix: bool, late: bool) -> Tensor:
    """:meth:`Intervals.sees` of the band's queries from q, and the keys from k to its end: (B, 1, queries, keys)."""
    band = slice(q, q + BAND)
    first, prompt, prompt_text, own, seen, known = (x[:, band, None] for x in i[:-1])
    key = torch.arange(k, q + first.shape[1], device=first.device, dtype=first.dtype)
    kind = i.kind[:, None, k : band.stop]
    mask = key >= first
    if late:
        mask &= (key >= own) | (key < torch.where(kind == LABEL, known, seen))
    if has_prefix:
        mask |= (key >= prompt) & (key < prompt_text)
    mask &= kind != SUM
    within = mask[:, :, q - k :]  # all keys before the band's own are before its queries
    within.tril_()
    within.diagonal(dim1=1, dim2=2).fill_(True)
    return mask[:, None]


def _ranges_of(x: Tensor, ranges: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
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
