"""Attention of the [SUM] rows in blocks of keys, under the paper's two fixes: own positions, forgetting by distance.

*Forgetting, exactly and fast.* A state for each (target, token) pair, as the naive form has it, is unaffordable. But
keys and values are linear in the state up to RMSNorm's denominator, and that is a quadratic in a:

    k(a) = ((1 - a) W g h + a W g h0) / rms(a),   rms(a)² = (1 - a)² <h,h> + 2 a (1 - a) <h,h0> + a² <h0,h0> + eps

So two score matrices, from the keys a layer has anyway and from the initial embeddings' keys, mixed by a(d) and divided
by rms(a), give the interpolation itself and not an approximation.

*Cost* of a layer, forward, with H heads of D, N blocks of KEYS keys and M [SUM]s that see into each: N M KEYS pairs
and, for each pair and head, 4 D FLOP and one score kept; twice that where something is forgotten, and one more k and v
projection, of L tokens or of the distinct ones among them (:mod:`dti_pipeline.modeling.speed.distinct`). On CUDA
:mod:`dti_pipeline.modeling.attention.sums.fused` keeps the scores on the chip.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums.rows import SumRows


def blocked_sum_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: SumRows,
    scale: float,
    layer: LayerInput,
) -> Tensor:
    """Attention (B, H, S, D), as :data:`SumOperator` has it, with softmax in fp32."""
    pairs, kv_heads = rows.pairs, key.shape[1]
    spread = rows.spread(query, kv_heads)
    value_bias = None
    if pairs.amount is None:
        scores = _scores(spread, rows.key_blocks(key)) * scale
    else:
        assert rows.initial is not None
        first_key, first_value = layer.project_initial(module, rows.initial, rows.keep_rotation)
        key_bias, value_bias = layer.biases(module, rows.keep_rotation)
        share, first_share = layer.shares(rows.initial, pairs.amount)
        if value_bias is not None:  # W g h alone is linear in the state
            value, first_value = value - value_bias, first_value - value_bias
        if key_bias is not None:
            key, first_key = key - key_bias, first_key - key_bias
        of_state, of_first = (_scores(spread, rows.key_blocks(x)) for x in (key, first_key))
        scores = (of_state * share + of_first * first_share) * scale
        if key_bias is not None:
            scores = scores + _scores(spread, rows.key_blocks(key_bias.expand_as(key))) * scale
    if pairs.back is not None:
        scores = scores - rows.slopes.view(1, kv_heads, 1, -1, 1, 1) * pairs.back
    scores = scores.masked_fill(~pairs.visible, float("-inf"))
    # Each block's own softmax, unnormalised; then the parts of each [SUM], brought to one maximum. Maxima cancel: they
    # need no gradient.
    top = scores.detach().amax(-1)
    top = torch.where(top.isfinite(), top, -torch.finfo(top.dtype).max)
    weight = torch.where(pairs.visible, (scores - top[..., None]).exp(), 0)
    if pairs.amount is None:
        out = _values(weight, rows.key_blocks(value))
    else:
        out = _values(weight * share, rows.key_blocks(value)) + _values(
            weight * first_share, rows.key_blocks(first_value)
        )
    level = (top - rows.spread(rows.highest(top), kv_heads)).exp().detach()
    total = rows.collect(weight.sum(-1) * level)
    out = rows.collect(out.float() * level[..., None]) / total.clamp(min=1e-30)[..., None]
    if value_bias is not None:
        out = out + value_bias.repeat_interleave(query.shape[1] // kv_heads, 1)
    return out.to(value.dtype)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """(B, H_kv, N, G, M, D) x (B, H_kv, N, KEYS, D) -> (B, H_kv, N, G, M, KEYS) in fp32."""
    scores = query.flatten(3, 4) @ key.to(query.dtype).transpose(-1, -2)
    return scores.unflatten(3, query.shape[3:5]).float()


def _values(weight: Tensor, value: Tensor) -> Tensor:
    """(B, H_kv, N, G, M, KEYS) x (B, H_kv, N, KEYS, D) -> (B, H_kv, N, G, M, D)."""
    out = weight.flatten(3, 4).to(value.dtype) @ value
    return out.unflatten(3, weight.shape[3:5])
