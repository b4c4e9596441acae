"""Attention of the [SUM] rows on CUDA: one fused kernel forward and two backward, without scores in memory.

It computes what :mod:`dti_pipeline.modeling.attention.sums.blocked` does, by the kernels of
:mod:`dti_pipeline.modeling.attention.sums.kernel`. An operator of torch's own: the compiler takes it as it is and a
CUDA graph can record it, as no shape depends on the batch's content and nothing waits for the device.

*Cost* of a layer at n = 20 and c = 30, beside the projections: a tile of 16 [SUM]s reads some 1,100 keys, once a
kernel. With the heads of an 8B-parameter model and a row of 8,192 tokens that is 7 GFLOP forward and 28 backward, half
of it where nothing is forgotten, and no memory beyond the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums.kernel import launch
from dti_pipeline.modeling.attention.sums.rows import SumRows


def fused_sum_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: SumRows,
    scale: float,
    layer: LayerInput,
) -> Tensor:
    """Attention (B, H, S, D), as :data:`SumOperator` has it, in the precision of ``value``, with softmax in fp32. Where
    something is forgotten, k and v projections must have no biases."""
    rule = rows.rule
    query, key, value = (_by_token(x, value.dtype) for x in (query, key, value))
    states = [key, value]
    if rule.family != "none":
        assert rows.initial is not None
        states += [_by_token(x, value.dtype) for x in layer.project_initial(module, rows.initial, rows.keep_rotation)]
        states.append(torch.stack(layer.means(rows.initial)))
    numbers = [scale, layer.eps, rule.maximum, float(max(rule.context, 1))]
    out, _ = attend_sums(query, states, [*rows.facts, rows.slopes.float()], numbers, rule.family, rule.alibi)
    return out.transpose(1, 2)


def _by_token(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, L, D) -> (B, L, H, D), as layers make it."""
    return x.transpose(1, 2).to(dtype).contiguous()


@torch.library.custom_op("dti::attend_sums", mutates_args=())
def attend_sums(
    query: Tensor, states: list[Tensor], facts: list[Tensor], numbers: list[float], family: str, alibi: bool
) -> tuple[Tensor, Tensor]:
    """Output (B, S, H, D) of queries (B, S, H, D), and the logarithm (B, S, H) of each softmax's denominator.

    ``states``: keys and values (B, L, H_kv, D); with a ``family`` also those of the initial embeddings, and the means
    of h², h h0 and h0² (3, B, L). ``facts``: the two of :class:`.rows.Facts`, and slopes (H,). ``numbers``: scale, eps,
    a's maximum, n. All tensors are contiguous."""
    out, level = _empty(query)
    launch("forward", [query, *_with_none(states), *facts, out, level], numbers, family, alibi)
    return out, level


@torch.library.custom_op("dti::attend_sums_backward", mutates_args=())
def attend_sums_backward(
    query: Tensor,
    states: list[Tensor],
    facts: list[Tensor],
    numbers: list[float],
    family: str,
    alibi: bool,
    level: Tensor,
    d_out: Tensor,
    delta: Tensor,
) -> list[Tensor]:
    """Gradients of the query and all ``states``, those of the means for each head of keys, (3, B, H_kv, L). ``delta``
    (B, S, H) is the product of output and its gradient, added up over D."""
    found = _empty_gradients(query, states)
    given = [query, *_with_none(states), *facts, level, d_out, delta]
    launch("queries", [*given, found[0]], numbers, family, alibi)
    launch("keys", [*given, *_with_none(found[1:])], numbers, family, alibi)
    return found


@attend_sums.register_fake
def _empty(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@attend_sums_backward.register_fake
def _empty_gradients(query: Tensor, states: list[Tensor], *_: Any) -> list[Tensor]:
    batch, length, kv_heads, _width = states[0].shape
    by_head = [x.new_empty(3, batch, kv_heads, length) for x in states[4:]]
    return [torch.empty_like(x) for x in (query, *states[:4])] + by_head


def _with_none(states: list[Tensor]) -> list[Tensor | None]:
    """With None for what only forgetting needs."""
    return [*states, *[None] * (5 - len(states))]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, states, facts, *ctx.others = inputs
    ctx.count = 1 + len(states)
    ctx.save_for_backward(query, *states, *facts, *output)


def _differentiate(ctx: Any, d_out: Tensor, _d_level: Tensor) -> tuple[Any, ...]:
    (query, *states), (*facts, out, level) = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
    d_out = d_out.contiguous()
    delta = (out.float() * d_out.float()).sum(-1)
    d_query, *found = attend_sums_backward(query, states, facts, *ctx.others, level, d_out, delta)
    return d_query, [*found[:4], *(x.sum(2) for x in found[4:])], [None] * len(facts), None, None, None


attend_sums.register_autograd(_differentiate, setup_context=_keep)
