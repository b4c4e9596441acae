"""Attention of the [SUM] rows under the paper's two fixes: their own positions, and forgetting by distance.

*Forgetting, exactly and fast.* A [SUM] reads token j at distance d through the mixed state
``h = (1 - a) h_j + a h0_j``, a = a(d). A state per (target, token) pair is unaffordable, but keys and values are linear
in the state up to RMSNorm's denominator, and that is a quadratic in a:

    k(a) = ((1 - a) W g h + a W g h0) / rms(a),   rms(a)² = (1 - a)² <h,h> + 2 a (1 - a) <h,h0> + a² <h0,h0> + eps

so two score matrices, from the keys a layer has anyway and from the initial embeddings' keys, mixed by a(d) and divided
by rms(a), give the interpolation itself and not an approximation. :func:`sum_attention_reference` is the plain form: it
projects the mixed states themselves, one distance after another.

*Cost* of a layer, forward, with H heads of D, N blocks of KEYS keys and M [SUM]s that see into each: N M KEYS pairs
and, for each pair and head, 4 D FLOP and one number of scores kept; twice that where something is forgotten, and one
more k and v projection: of L tokens, or of the distinct ones among them where the initial embedding is a function of
the token alone (:mod:`dti_pipeline.modeling.speed.distinct`). In rows of 8,192 tokens with n = 20, c = 30, where M = 32:
262,144 pairs instead of the 264 x 8,192 of all keys, 8.4 M scores for 32 heads; 4 GFLOP, and 8 in forgetting beside the
137 of projecting all tokens. (A layer of an 8B-parameter model does 3,600.) On CUDA
:mod:`dti_pipeline.modeling.attention.sums.fused` keeps the scores on the chip.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dti_pipeline.modeling.attention.layers import LayerMemory
from dti_pipeline.modeling.attention.sums.rows import SumRows


def sum_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: SumRows,
    scale: float,
    memory: LayerMemory,
) -> Tensor:
    """Attention output (B, H, S, D) of the [SUM] rows' queries (B, H, S, D) over all keys (B, H_kv, L, D), softmax in
    fp32. Queries and keys are given as the rule has them, rotated or not; ``memory`` is the layer's own where something
    is forgotten."""
    pairs, kv_heads = rows.pairs, key.shape[1]
    spread = rows.spread(query, kv_heads)
    value_bias = None
    if pairs.amount is None:
        scores = _scores(spread, rows.key_blocks(key)) * scale
    else:
        assert rows.initial is not None
        first_key, first_value = memory.project_initial(module, rows.initial, rows.keep_rotation)
        key_bias, value_bias = memory.biases(module, rows.keep_rotation)
        share, first_share = memory.shares(rows.initial, pairs.amount)
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


def sum_attention_reference(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: SumRows,
    scale: float,
    memory: LayerMemory,
) -> Tensor:
    """The same, plainly, over whole rows of keys; what is forgotten from mixed states: for every amount that occurs,
    mix, norm, project, and use those keys and values where a pair has that amount. Cost: S L scores a head, one k and v
    projection for every distance."""
    length = key.shape[2]
    slot = torch.arange(length, device=key.device).expand(len(key), 1, -1)
    visible, back, amount = (None if x is None else x[:, None] for x in rows.rule.pairs(rows.slot[:, :, None], slot))
    assert visible is not None
    bias = 0.0 if back is None else -rows.slopes[None, :, None, None] * back
    if amount is None:
        scores, states = _plain_scores(query, key, scale), [(visible, value)]
    else:
        assert rows.initial is not None
        scores = torch.zeros(*query.shape[:3], length, dtype=query.dtype, device=query.device)
        states = []
        for one in amount.unique():
            mixed = (1 - one) * memory.hidden + one * rows.initial.state
            mixed_key, mixed_value = memory.project(module, mixed.to(memory.hidden.dtype), rows.keep_rotation)
            here = amount == one
            scores = torch.where(here, _plain_scores(query, mixed_key, scale), scores)
            states.append((here, mixed_value))
    share = (scores + bias).masked_fill(~visible, float("-inf")).softmax(-1)
    groups = query.shape[1] // key.shape[1]
    parts = [(share * here).to(v.dtype) @ v.repeat_interleave(groups, 1) for here, v in states]
    return torch.stack(parts).sum(0) * rows.valid[:, None, :, None]


def _plain_scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(B, H, S, D) x (B, H_kv, L, D) -> (B, H, S, L)."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    return (query @ key.transpose(2, 3)).float() * scale


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """(B, H_kv, N, G, M, D) x (B, H_kv, N, KEYS, D) -> (B, H_kv, N, G, M, KEYS) in fp32."""
    scores = query.flatten(3, 4) @ key.to(query.dtype).transpose(-1, -2)
    return scores.unflatten(3, query.shape[3:5]).float()


def _values(weight: Tensor, value: Tensor) -> Tensor:
    """(B, H_kv, N, G, M, KEYS) x (B, H_kv, N, KEYS, D) -> (B, H_kv, N, G, M, D)."""
    out = weight.flatten(3, 4).to(value.dtype) @ value
    return out.unflatten(3, weight.shape[3:5])
