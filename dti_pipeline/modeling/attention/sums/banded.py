"""[SUM] rows that obey the mask alone, on a CPU: SDPA, band by band, over the keys that some [SUM] of the band sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dti_pipeline.modeling.attention.backends import ranges_of
from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums.rows import Facts, Pairs, Rule, SumRows

#: [SUM]s of a band.
BAND = 64


def plain_rows(slot: Tensor, valid: Tensor, rule: Rule, slopes: Tensor) -> SumRows:
    """The [SUM] rows of a batch for :func:`banded_sum_attention`: without blocks of keys, which it does not read."""
    none = slot[:, :0]
    return SumRows(
        slot=slot,
        valid=valid,
        rule=rule,
        slopes=slopes,
        query=none,
        placed=none,
        part=none,
        has_part=none,
        pairs=Pairs(none, None, None),
        facts=Facts(none, none),
        keep_rotation=True,
        operator=banded_sum_attention,
    )


def banded_sum_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, rows: SumRows, scale: float, layer: LayerInput
) -> Tensor:
    """Attention (B, H, S, D), as :data:`SumOperator` has it, of rows without a rule of their own. Cost: S scores a head
    for each key between the first that a band's [SUM]s see and the last, of all rows together."""
    assert not rows.have_own_rule
    reach = rows.rule.spans.reach().gather(1, rows.slot)
    slots = rows.slot.split(BAND, 1)
    ranges = [(int(first.min()), int(slot.max()) + 1) for first, slot in zip(reach.split(BAND, 1), slots, strict=True)]
    parts = [
        scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=_mask(rows.rule, slot, *bounds),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for queries, keys, values, slot, bounds in zip(
            query.split(BAND, 2), ranges_of(key, ranges), ranges_of(value, ranges), slots, ranges, strict=True
        )
    ]
    return torch.cat(parts, dim=2)


def _mask(rule: Rule, slot: Tensor, start: int, stop: int) -> Tensor:
    """Which keys from ``start`` to ``stop`` the [SUM]s at ``slot`` (B, S) see: (B, 1, S, stop - start)."""
    key = torch.arange(start, stop, device=slot.device).expand(len(slot), 1, -1)
    return rule.spans.sees(slot[..., None], key)[:, None]
