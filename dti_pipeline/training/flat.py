"""Trained weights side by side in a few flat tensors: what is done to all of them is an operation or two, however many
they are.

Weights and their gradients become views. Each begins at a multiple of :data:`ALIGNED` bytes, as kernels read fastest;
the gaps are zeros, and stay so under AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, distributed, nn

#: Bytes. Compiled code and products of matrices ask for 16 of them at least.
ALIGNED = 256


@dataclass(frozen=True)
class Flat:
    """Weights of one kind in one flat tensor."""

    whole: nn.Parameter  # its gradient is always there
    parts: tuple[nn.Parameter, ...]
    starts: tuple[int, ...]  # of each part

    @classmethod
    @torch.no_grad()
    def of(cls, parts: Sequence[nn.Parameter]) -> Flat:
        """Lay weights of one dtype and device side by side. Memory, for a moment: a copy of them."""
        step = ALIGNED // parts[0].element_size()
        *starts, size = accumulate((-(-part.numel() // step) * step for part in parts), initial=0)
        whole = nn.Parameter(parts[0].new_zeros(size))
        whole.grad = torch.zeros_like(whole)
        flat = cls(whole, tuple(parts), tuple(starts))
        for part, view in zip(parts, flat.cut(whole.detach()), strict=True):
            part.data = view.copy_(part)
        return flat

    def cut(self, like: Tensor) -> list[Tensor]:
        """What belongs to each part in a tensor ``like`` the whole, as views."""
        return [
            like[start : start + part.numel()].view(part.shape)
            for part, start in zip(self.parts, self.starts, strict=True)
        ]


def flattened(weights: Iterable[nn.Parameter], kind: Callable[[nn.Parameter], Hashable]) -> list[Flat]:
    """Weights side by side with those of their ``kind``, dtype and device, in order."""
    kinds: dict[Hashable, list[nn.Parameter]] = {}
    for weight in weights:
        kinds.setdefault((kind(weight), weight.dtype, weight.device), []).append(weight)
    return [Flat.of(parts) for parts in kinds.values()]


class FlatAdamW(torch.optim.AdamW):
    """AdamW of flat tensors. Gradients stay where they are, and are dropped by being set to zero."""

    def __init__(self, flats: Sequence[Flat], weight_decay: Callable[[Flat], float], **options: Any) -> None:
        groups = [{"params": [flat.whole], "weight_decay": weight_decay(flat)} for flat in flats]
        super().__init__(groups, **options)
        self.flats = tuple(flats)
        self._lying = [lying for flat in flats for lying in zip(flat.parts, flat.cut(_gradient(flat)), strict=True)]
        self._places = [(weight.data_ptr(), gradient.data_ptr()) for weight, gradient in self._lying]
        self.attach()

    def attach(self) -> None:
        """Let backward passes add to the flat gradients."""
        for weight, gradient in self._lying:
            weight.grad = gradient

    def detach(self) -> None:
        """Let the next backward pass make gradients of its own."""
        for weight, _ in self._lying:
            weight.grad = None

    def add_detached(self) -> None:
        """Add gradients that were made while detached to the flat ones."""
        made = [(gradient, weight.grad) for weight, gradient in self._lying if weight.grad is not None]
        torch._foreach_add_([gradient for gradient, _ in made], [new for _, new in made])

    def gradients(self) -> list[Tensor]:
        """The flat gradients. Raises RuntimeError where a weight or its gradient lies elsewhere: an update would miss
        it."""
        weights = [weight for weight, _ in self._lying]
        if self._places != [(x.data_ptr(), x.grad.data_ptr() if x.grad is not None else None) for x in weights]:
            raise RuntimeError(
                "a weight was moved, or its gradient dropped, behind the optimizer: make it of a model that is placed,"
                " and drop gradients by its zero_grad"
            )
        return [_gradient(flat) for flat in self.flats]

    def share_weights(self) -> None:
        """Give all processes the first one's weights: other kinds of CPUs may draw other last bits."""
        for flat in self.flats:
            distributed.broadcast(flat.whole.detach(), src=0)

    def add_up(self) -> None:
        """Add up the gradients of all processes where they lie; afterwards each has the same sums.

        The sums are fp32, as whatever is trained is: bfloat16 would halve the bytes and keep three digits. Bytes a
        step: around a ring of n processes each sends 2 (n - 1) / n times those of the gradients, 0.54 GB for 135 M
        weights and n = 2. Nothing is computed meanwhile.
        """
        for flat in self.flats:
            distributed.all_reduce(_gradient(flat))

    @torch.no_grad()
    def zero_grad(self, set_to_none: bool = True) -> None:
        self.attach()
        torch._foreach_zero_([_gradient(flat) for flat in self.flats])


def _gradient(flat: Flat) -> Tensor:
    assert flat.whole.grad is not None
    return flat.whole.grad
