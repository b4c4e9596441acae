"""An average of the trained weights over optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a model's trained weights. Memory: a copy of them; time: a read of them a step.

    Step t moves it towards the weights by 1 - min(decay, t / (t + 9)), as TensorFlow's moving averages do: it forgets
    where training began.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._weights: list[Tensor] = list(trained.values())
        self.tensors = {name: weight.detach().clone() for name, weight in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after step ``step``, counted from 1."""
        torch._foreach_lerp_(list(self.tensors.values()), self._weights, 1 - min(self.decay, step / (step + 9)))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average's weights, and its own again afterwards."""
        own = [weight.detach().clone() for weight in self._weights]
        self.apply()
        try:
            yield
        finally:
            self._set(own)

    def apply(self) -> None:
        """Give the model the average's weights for good."""
        self._set(list(self.tensors.values()))

    @torch.no_grad()
    def _set(self, tensors: list[Tensor]) -> None:
        for weight, tensor in zip(self._weights, tensors, strict=True):
            weight.copy_(tensor)
