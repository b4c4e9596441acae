"""Attention backends: one fused kernel on CUDA, and torch's own attention in bands wherever that cannot be had.

Both obey the same intervals. Which one a batch gets is decided in
:mod:`dti_pipeline.modeling.network.batch_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dti_pipeline.modeling.attention.fused import attend_intervals
from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.masks.visibility import Intervals, dense, last_readers

#: Queries of a band. Smaller bands skip more keys and cost more calls.
BAND = 128


@dataclass(frozen=True)
class Fused:
    """The kernels of :mod:`dti_pipeline.modeling.attention.fused`, which read the intervals as they are."""

    facts: tuple[Tensor, ...]
    has_prefix: bool

    @classmethod
    def of(cls, i: Intervals, has_prefix: bool) -> Fused:
        facts = (i.first, i.prompt, i.prompt_text, i.is_sum, last_readers(i, has_prefix))
        return cls(tuple(x.int() for x in facts), has_prefix)

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        kind = query.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
        by_token = [x.transpose(1, 2).to(dtype) for x in (query, key, value)]
        out, _ = attend_intervals(*by_token, list(self.facts), scale, self.has_prefix)
        return out.transpose(1, 2)


@dataclass(frozen=True)
class Banded:
    """SDPA, band by band of queries, each with only the keys that some query of the band sees.

    Cost: L (band + longest reach) scores a head instead of L².
    """

    bands: tuple[tuple[int, int, Tensor], ...]  # first query, first key, mask (B, 1, queries, keys)

    @classmethod
    def of(cls, i: Intervals) -> Banded:
        mask, reach = dense(i), i.reach()
        length = mask.shape[1]
        bands = []
        for q in range(0, length, BAND):
            stop = min(q + BAND, length)
            k = int(reach[:, q:stop].min())
            bands.append((q, k, mask[:, None, q:stop, k:stop].contiguous()))
        return cls(tuple(bands))

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        parts = [
            scaled_dot_product_attention(
                query[:, :, q : q + mask.shape[2]],
                key[:, :, k : k + mask.shape[3]],
                value[:, :, k : k + mask.shape[3]],
                attn_mask=mask,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            for q, k, mask in self.bands
        ]
        return torch.cat(parts, dim=2)
