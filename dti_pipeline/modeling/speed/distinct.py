"""A batch's distinct tokens: functions of the token alone are computed once for each.

In real texts they are about a ninth of a batch's tokens. Results are copied to every slot where the token stands; their
gradients are added up over those slots in fp32 and in one order, so that the same batch has the same gradients to the
last bit. Nothing here waits for the device, and no shape depends on the batch's content.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Distinct:
    """U distinct tokens of B rows of L, in the order of their ids. U is padded by tokens that stand nowhere."""

    state: Tensor  # (U, E) what entered the first layer
    number: Tensor  # (B, L) int64, which of them each slot holds
    order: Tensor  # (B L,) int64, flat slots: those of the first token, then those of the next, ..
    start: Tensor  # (U + 1,) int64, where each token's slots begin in it

    @classmethod
    def of(cls, token: Tensor, embedded: Tensor, count: int) -> Distinct:
        """Of tokens (B, L) with ``embedded`` (B, L, E), the same wherever a token stands; ``count`` is U, no smaller
        than their number. Cost: one sort of B L integers, once for all layers."""
        ascending, order = token.flatten().sort(stable=True)
        number = functional.pad((ascending.diff() != 0).cumsum(0), (1, 0))
        start = torch.searchsorted(number, torch.arange(count + 1, device=token.device))
        first = order.index_select(0, start[:-1].clamp(max=len(order) - 1))
        return cls(
            state=embedded.flatten(0, 1).index_select(0, first),
            number=torch.empty_like(order).scatter(0, order, number).view_as(token),
            order=order,
            start=start,
        )

    def to_slots(self, x: Tensor) -> Tensor:
        """(U, ..) -> (B, L, ..): each token's where it stands."""
        return _ToSlots.apply(x, self.number, self.order, self.start)


class _ToSlots(torch.autograd.Function):
    """A plain index would have its gradient added up atomically, in bfloat16 slowly, and in no fixed order."""

    @staticmethod
    def forward(ctx, x, number, order, start):
        ctx.save_for_backward(number, order, start)
        return x[number]

    @staticmethod
    def backward(ctx, gradient):
        number, order, start = ctx.saved_tensors
        by_slot = gradient.reshape(len(order), -1).contiguous()
        by_token = sum_by_token(by_slot, number.flatten(), order, start)
        return by_token.view(-1, *gradient.shape[2:]), None, None, None


@torch.library.custom_op("dti::sum_by_token", mutates_args=(), device_types="cpu")
def sum_by_token(rows: Tensor, number: Tensor, order: Tensor, start: Tensor) -> Tensor:
    """Rows (P, F) of P slots, added up over those of each token: (U, F), in fp32 before it is rounded to the rows'
    precision. ``number`` (P,), ``order`` and ``start`` as :class:`Distinct` has them; all tensors are contiguous.

    An operator of torch's own, which its compiler takes as it is and a CUDA graph can record."""
    total = torch.zeros(len(start) - 1, rows.shape[1])
    return total.index_add(0, number, rows.float()).to(rows.dtype)


@sum_by_token.register_kernel("cuda")
def _on_cuda(rows: Tensor, number: Tensor, order: Tensor, start: Tensor) -> Tensor:
    from dti_pipeline.modeling.speed.distinct_kernel import launch  # needs Triton

    out = _empty(rows, number, order, start)
    launch(rows, number, order, start, out)
    return out


@sum_by_token.register_fake
def _empty(rows: Tensor, number: Tensor, order: Tensor, start: Tensor) -> Tensor:
    return rows.new_empty(len(start) - 1, rows.shape[1])
