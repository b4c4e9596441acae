"""Frozen linear layers in eight bits: products at up to twice bfloat16's speed on a GPU that has them.

Weights are rounded once, to float8 (e4m3: 4 bits of exponent, 3 of mantissa) with one scale an output; activations, and
gradients on their way back, at each pass with one scale a token. A rounded number is off by at most 2^-4 of itself, a
product of K of them by about 2^-5.5 / sqrt(K) of its terms' size together: the noise of a layer is some 4 % of its
output. What LoRA trains, norms, attention and the residual stream stay in bfloat16 and fp32.

After the row-wise recipe of float8 training (Micikevicius et al., arXiv 2209.05433; torchao), for layers without a
gradient of their own: no third product, and nothing to round again after an update.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dti_pipeline.errors import InputError

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max
#: Compute capability of the first GPUs with such products.
CAPABILITY = (8, 9)
TILE = 16  # inputs and outputs must be multiples of it


class Float8Linear(nn.Module):
    """``x Wᵀ + b`` of a frozen ``nn.Linear``. Memory: two bytes a weight, as in bfloat16: forward and backward each
    want it in an order, and with scales, of their own."""

    weight: Tensor
    scale: Tensor
    transposed: Tensor
    transposed_scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        with torch.no_grad():
            for prefix, matrix in (("", linear.weight), ("transposed_", linear.weight.T)):
                rounded, scale = quantise(matrix)
                self.register_buffer(prefix.removesuffix("_") or "weight", rounded, persistent=False)
                self.register_buffer(f"{prefix}scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(.., in) -> (.., out), in bfloat16 on a GPU; its gradient is rounded too."""
        out = _Product.apply(
            x.flatten(0, -2), self.weight, self.scale, self.transposed, self.transposed_scale
        ).unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias.to(out.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, transposed: Tensor, its_scale: Tensor) -> Tensor:
        ctx.save_for_backward(transposed, its_scale)
        return product(*quantise(x), weight, scale, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        transposed, its_scale = ctx.saved_tensors
        return product(*quantise(gradient), transposed, its_scale, gradient.dtype), None, None, None, None


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """(M, K) rounded to float8, rows contiguous, and what each row was divided by, (M, 1) in fp32."""
    x = x.float()
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (x / scale).clamp(-LARGEST, LARGEST).to(E4M3).contiguous(), scale


def product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``a bᵀ`` of quantised (M, K) and (N, K) -> (M, N): on a GPU by its float8 units, in bfloat16; elsewhere the plain
    product of the rounded numbers, which is what that one is held to."""
    if a.is_cuda:
        return torch._scaled_mm(
            a, b.T, scale_a=a_scale, scale_b=b_scale.T, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    return ((a.float() * a_scale) @ (b.float() * b_scale).T).to(dtype)


def freeze(layers: nn.ModuleList, device: torch.device) -> None:
    """Replace every linear layer in ``layers`` whose weight is not trained, adapters' base layers too.

    Raises InputError where the GPU, or the shape of the model, has no such products.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        raise InputError(
            "params key `model.frozen_weights` is float8, which needs a CUDA device of compute capability 8.9 or newer"
        )
    for name, linear in _frozen(layers):
        if linear.in_features % TILE or linear.out_features % TILE:
            raise InputError(
                f"params key `model.frozen_weights` is float8, which needs sizes that are multiples of {TILE}, and"
                f" {name} is {linear.out_features} x {linear.in_features}"
            )
    replace(layers)


def replace(layers: nn.Module) -> None:
    """The replacement itself, on any device."""
    for name, linear in _frozen(layers):
        parent, _, child = name.rpartition(".")
        setattr(layers.get_submodule(parent), child, Float8Linear(linear))


def _frozen(layers: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [
        (name, module)
        for name, module in layers.named_modules()
        if type(module) is nn.Linear and not module.weight.requires_grad
    ]
