"""Attention of [SUM] rows that obey the mask alone, on a CPU: SDPA, band by band, over the keys that some [SUM] of the
band sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums.rows import SumRows

#: [SUM]s of a band.
BAND = 64


def banded_sum_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, rows: SumRows, scale: float, layer: LayerInput
) -> Tensor:
    """Attention (B, H, S, D), as :data:`SumOperator` has it, of rows without a rule of their own. Cost: S scores a head
    for each key between the first that a band's [SUM]s see and the last, of all rows together."""
    assert not rows.have_own_rule
    spans = rows.rule.spans
    reach = spans.reach().gather(1, rows.slot)
    parts = []
    for s in range(0, query.shape[2], BAND):
        slot = rows.slot[:, s : s + BAND]
        start, stop = int(reach[:, s : s + BAND].min()), int(slot.max()) + 1
        seen = spans.sees(slot[..., None], torch.arange(start, stop, device=slot.device).expand(len(slot), 1, -1))
        parts.append(
            scaled_dot_product_attention(
                query[:, :, s : s + BAND],
                key[:, :, start:stop],
                value[:, :, start:stop],
                attn_mask=seen[:, None],
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2)
