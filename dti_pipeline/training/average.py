"""An average of the trained weights over optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dti_pipeline.training.flat import Flat


class Average:
    """The exponential moving average of a model's trained weights. Memory: a copy of them; time: a read of them a step.

    Step t moves it towards the weights by 1 - min(decay, t / (t + 9)), as TensorFlow's moving averages do: it forgets
    where training began.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], decay: float, flats: Sequence[Flat] = ()) -> None:
        """Of the weights ``trained``, by name, which lie in ``flats`` where there are any."""
        self.decay = decay
        self._weights: list[Tensor] = [flat.whole for flat in flats] or list(trained.values())
        self._averages = [weight.detach().clone() for weight in self._weights]
        own = dict(zip(self._weights, self._averages, strict=True))
        for flat in flats:
            own |= zip(flat.parts, flat.cut(own[flat.whole]), strict=True)
        self.tensors = {name: own[weight] for name, weight in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after step ``step``, counted from 1."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - min(self.decay, step / (step + 9)))

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
        self._set(self._averages)

    @torch.no_grad()
    def _set(self, tensors: list[Tensor]) -> None:
        for weight, tensor in zip(self._weights, tensors, strict=True):
            weight.copy_(tensor)
