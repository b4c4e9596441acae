"""Operations of attention over reordered keys, each with its own gradient.

In a row with its keys in their order every block of 128 holds [SUM]s, which nobody else sees, so that no block could be
taken without a look at the mask. With texts and labels first and [SUM]s behind them
(:mod:`dti_pipeline.modeling.masks.reordered_blocks`) most blocks are visible as a whole. A [SUM] still sees itself: its
softmax over one key more is a mean of the output there was and of that key's value, whose weight is
``sigmoid(score - lse)``, lse the logarithm of the softmax's denominator over all other keys.

Cost: keys and values are copied. Each function knows its gradient, which autograd would add up from tensors of zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dti_pipeline.modeling.masks.reordered_blocks import ReorderedKeys


def reorder(x: Tensor, keys: ReorderedKeys) -> Tensor:
    """Keys or values (B, H, L, D) in their new order, (B, H, padded, D)."""
    return _Reorder.apply(x, *keys)


def with_rows(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` (B, H, R, D), and its rows that ``index`` (B, S) names: (B, H, S, D). One gradient for both."""
    return _WithRows.apply(x, index)


def with_own_key(out: Tensor, lse: Tensor, score: Tensor, value: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Attention in which some rows see one key more.

    ``out`` (B, H, R, D) has denominators exp(``lse``) (B, H, R). The rows ``index`` (B, S) also see a key of ``score``
    (B, H, S) and ``value`` (B, H, S, D). An index that is not ``valid`` (B, S) repeats the last one that is.
    """
    return _WithOwnKey.apply(out, lse, score, value, index, valid)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """An index (B, S) of rows, for all heads and numbers of ``x`` (B, H, R, D)."""
    return index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])


class _Reorder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.gather(2, _rows(x, order))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        (place,) = ctx.saved_tensors
        return gradient.gather(2, _rows(gradient, place)), None, None


class _WithRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(index)
        return x.view_as(x), x.gather(2, _rows(x, index))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, of_rows: Tensor) -> tuple[Any, ...]:
        (index,) = ctx.saved_tensors
        return gradient.scatter_add(2, _rows(gradient, index), of_rows), None


class _WithOwnKey(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, out: Tensor, lse: Tensor, score: Tensor, value: Tensor, index: Tensor, valid: Tensor
    ) -> Tensor:
        there = out.gather(2, _rows(out, index))
        weight = (score - lse.gather(2, index[:, None].expand(-1, lse.shape[1], -1))).sigmoid()
        weight = weight * valid.any(1)[:, None, None]  # a row without any names slot 0
        ctx.save_for_backward(there, weight, value, index, valid)
        mean = torch.lerp(there.float(), value.float(), weight[..., None])
        return out.scatter(2, _rows(out, index), mean.to(out.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        there, weight, value, index, valid = ctx.saved_tensors
        of_rows = gradient.gather(2, _rows(gradient, index)).float()
        counted = valid[:, None].float()  # a repeated row has its gradient already
        d_score = weight * (1 - weight) * (of_rows * (value.float() - there.float())).sum(-1) * counted
        d_lse = d_score.new_zeros(gradient.shape[:3])
        d_lse = d_lse.scatter_add(2, index[:, None].expand(-1, d_score.shape[1], -1), -d_score)
        kept = ((1 - weight)[..., None] * of_rows).to(gradient.dtype)
        d_value = ((weight * counted)[..., None] * of_rows).to(value.dtype)
        return gradient.scatter(2, _rows(gradient, index), kept), d_lse, d_score, d_value, None, None
