"""LoRA layers as one product: each forward pass adds the adapters to the frozen weights, and multiplies once.

``x Wᵀ + s x Aᵀ Bᵀ = x (W + s B A)ᵀ``. The left side reads and writes every activation several times for the sake of r
numbers a token; in a narrow model that takes as long as the products themselves. The right side costs a look at the
weights, once a micro-batch, and a product for the weights' gradient, as where all weights are trained: 6 FLOP a weight
and token instead of 4. So it pays up to a width at which arithmetic takes the time.

The sum is rounded to the frozen weights' precision, as a model with adapters merged for serving has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional


class MergedLinear(lora.Linear):
    """A LoRA layer of one adapter that multiplies once."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(.., in) -> (.., out), in the precision of ``x``, or of autocast where it is on."""
        ((name, down),) = self.lora_A.items()
        base: Any = self.base_layer
        change = self.scaling[name] * (self.lora_B[name].weight @ down.weight)
        weight, bias = (base.weight + change).to(base.weight.dtype), base.bias
        if not torch.is_autocast_enabled(x.device.type):
            weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        return functional.linear(x, weight, bias)


def merge(layers: nn.Module, merged: bool = True) -> None:
    """Let every LoRA layer in ``layers`` multiply once, or as peft has it. Weights and their names stay."""
    for layer in lora_layers(layers):
        layer.__class__ = MergedLinear if merged else lora.Linear


def lora_layers(layers: nn.Module) -> Iterator[lora.Linear]:
    """The LoRA layers that can be merged: those over a plain linear layer."""
    for layer in layers.modules():
        if isinstance(layer, lora.Linear) and type(layer.base_layer) is nn.Linear:
            yield layer
