"""Attention by intervals on CUDA: one fused kernel forward and two backward, for every paradigm's mask.

A mask is a few numbers a query (:class:`dti_pipeline.modeling.masks.visibility.Intervals`). The kernels of
:mod:`dti_pipeline.modeling.attention.kernel` read them as they are: no lists of blocks, no copies of keys.
An operator of torch's own: the compiler takes it as it is and a CUDA graph can record it, as no shape depends on the
batch's content and nothing waits for the device.

*Cost* of a layer, forward, with H heads of D: 4 D FLOP a head and pair of a tile of queries with a key between its
earliest and its latest; backward 3.5 times that. Memory: the output, and a number a query and head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("dti::attend_intervals", mutates_args=())
def attend_intervals(
    query: Tensor, key: Tensor, value: Tensor, facts: list[Tensor], scale: float, has_prefix: bool, late: bool
) -> tuple[Tensor, Tensor]:
    """Output (B, L, H, D) of queries (B, L, H, D) over keys and values (B, L, H_kv, D), and the logarithm to base 2
    (B, L, H) of each softmax's denominator.

    ``facts``, int32, (B, L) each: those of Intervals, and the last query that sees each key. Without ``late`` every
    query knows all labels before its interaction, and less is read. Precision: that of ``query``, with softmax in
    fp32."""
    from dti_pipeline.modeling.attention.kernel import launch  # needs Triton

    given = _readable(query, key, value)
    out, level = _empty(query)
    launch("forward", given, facts, [out, level], scale, has_prefix, late)
    return out, level


@torch.library.custom_op("dti::attend_intervals_backward", mutates_args=())
def attend_intervals_backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    facts: list[Tensor],
    scale: float,
    has_prefix: bool,
    late: bool,
    out: Tensor,
    level: Tensor,
    d_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, contiguous."""
    from dti_pipeline.modeling.attention.kernel import launch  # needs Triton

    given = _readable(query, key, value)
    made, delta = _empty_gradients(query, key, value), torch.empty_like(level)
    known = [out, level, d_out.contiguous(), delta]
    launch("queries", given, facts, [*known, made[0]], scale, has_prefix, late)
    launch("keys", given, facts, [*known, *made[1:]], scale, has_prefix, late)
    return made


@attend_intervals.register_fake
def _empty(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=torch.float32)


@attend_intervals_backward.register_fake
def _empty_gradients(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _readable(*given: Tensor) -> list[Tensor]:
    """Tensors whose vectors are contiguous, copied only where they are not."""
    return [x if x.stride(3) == 1 else x.contiguous() for x in given]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, facts, ctx.scale, *ctx.flags = inputs
    ctx.save_for_backward(query, key, value, *output, *facts)


def _differentiate(ctx: Any, d_out: Tensor, _d_level: Tensor) -> tuple[Any, ...]:
    query, key, value, out, level, *facts = ctx.saved_tensors
    found = attend_intervals_backward(query, key, value, facts, ctx.scale, *ctx.flags, out, level, d_out)
    return *found, [None] * len(facts), None, None, None


attend_intervals.register_autograd(_differentiate, setup_context=_keep)
