"""Attention of the [SUM] rows, plainly: the specification of the other forms.

A [SUM] reads token j at distance d through the mixed state ``h = (1 - a(d)) h_j + a(d) h0_j``. Here each amount that
occurs is mixed, normed and projected, over whole rows of keys.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums.rows import SumRows


def naive_sum_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: SumRows,
    scale: float,
    layer: LayerInput,
) -> Tensor:
    """Attention (B, H, S, D), as :data:`SumOperator` has it. Cost: S L scores a head, and one k and v projection for
    every amount that is forgotten."""
    length = key.shape[2]
    slot = torch.arange(length, device=key.device).expand(len(key), 1, -1)
    visible, back, amount = (None if x is None else x[:, None] for x in rows.rule.pairs(rows.slot[:, :, None], slot))
    assert visible is not None
    bias = 0.0 if back is None else -rows.slopes[None, :, None, None] * back
    if amount is None:
        scores, states = _scores(query, key, scale), [(visible, value)]
    else:
        assert rows.initial is not None
        scores = torch.zeros(*query.shape[:3], length, dtype=query.dtype, device=query.device)
        states = []
        for one in amount.unique():
            mixed = (1 - one) * layer.hidden + one * rows.initial.state
            mixed_key, mixed_value = layer.project(module, mixed.to(layer.hidden.dtype), rows.keep_rotation)
            here = amount == one
            scores = torch.where(here, _scores(query, mixed_key, scale), scores)
            states.append((here, mixed_value))
    share = (scores + bias).masked_fill(~visible, float("-inf")).softmax(-1)
    groups = query.shape[1] // key.shape[1]
    parts = [(share * here).to(v.dtype) @ v.repeat_interleave(groups, 1) for here, v in states]
    return torch.stack(parts).sum(0) * rows.valid[:, None, :, None]


def _scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(B, H, S, D) x (B, H_kv, L, D) -> (B, H, S, L)."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return (query @ key.transpose(2, 3)).float() * scale
