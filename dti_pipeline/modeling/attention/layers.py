"""Decoder layers that hand their input to the attention function, and a last layer that works at [SUM] rows only.

Both are subclasses of a layer's own class, made once for each: weights keep their names, the compiler sees plain code
without hooks, and all layers of a model are one piece of code to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from dti_pipeline.modeling.attention.distance import rotate, unrotate
from dti_pipeline.modeling.attention.sums.rows import Initial, by_key


@dataclass(frozen=True)
class LayerInput:
    """A decoder layer's input and its norm, which transformers does not give to an attention function."""

    norm: Any  # None where a layer norms nothing before attention; the probe finds out where it matters
    hidden: Tensor  # (B, L, E)
    cos: Tensor | None  # (B, L, D) its rotary embedding; None where there is none
    sin: Tensor | None
    at_sums: bool = False  # queries are of [SUM] rows only; keys and values are still to be made

    @property
    def eps(self) -> float:
        return float(getattr(self.norm, "variance_epsilon", getattr(self.norm, "eps", 0.0)))

    def project(self, module: Any, state: Tensor, rotated: bool) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H_kv, L, D) of a state (B, L, E); keys at the batch's positions where ``rotated``."""
        return self._placed(*self._projected(module, state), rotated)

    def project_initial(self, module: Any, initial: Initial, rotated: bool) -> tuple[Tensor, Tensor]:
        """The same of what entered the first layer; each of its distinct tokens is projected once, where they are
        known."""
        distinct = initial.distinct
        if distinct is None:
            return self.project(module, initial.state, rotated)
        key, value = self._projected(module, distinct.state[None])
        return self._placed(distinct.to_slots(key[0]), distinct.to_slots(value[0]), rotated)

    def _projected(self, module: Any, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, E) -> (B, L, H_kv, D), without positions."""
        normed = self.norm(state)
        shape = (*state.shape[:2], -1, module.head_dim)
        key, value = module.k_proj(normed).view(shape), module.v_proj(normed).view(shape)
        return module.k_norm(key) if hasattr(module, "k_norm") else key, value

    def _placed(self, key: Tensor, value: Tensor, rotated: bool) -> tuple[Tensor, Tensor]:
        key = key.transpose(1, 2)
        return self._rotated(key) if rotated else key, value.transpose(1, 2)

    def biases(self, module: Any, rotated: bool) -> tuple[Tensor | None, Tensor | None]:
        """Biases of the k and v projections as they appear in keys (B, H_kv, L or 1, D) and values (1, H_kv, 1, D)."""
        key, value = (
            None if getattr(x, "bias", None) is None else x.bias.view(1, -1, 1, module.head_dim)
            for x in (module.k_proj, module.v_proj)
        )
        if key is not None and rotated:
            key = self._rotated(key.expand(len(self.hidden), -1, self.hidden.shape[1], -1))
        return key, value

    def means(self, initial: Initial) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L) each, fp32: the means of h², h h0 and h0² over the width, of which any mixture's norm consists. Where
        only some tokens' embeddings are trained, no gradient is made for the others."""
        h = self.hidden.float()
        hh = (h * h).mean(-1)
        if initial.rows is None:
            o = initial.state.float()
            return hh, (h * o).mean(-1), (o * o).mean(-1)
        # Where they are known, distinct tokens' embeddings stay in a GPU's cache: each slot's is looked up there.
        distinct = initial.distinct
        state, number = (initial.state, None) if distinct is None else (distinct.state, distinct.number)
        state = state.detach()
        frozen, of_rows = state.float().square().mean(-1), initial.rows.float().square().mean(-1, keepdim=True)
        oo = initial.put(_by_slot(frozen, number)[..., None], of_rows)[..., 0]
        return hh, _MeanProduct.apply(self.hidden, state, number, initial.rows, initial.which), oo

    def shares(self, initial: Initial, amount: Tensor) -> tuple[Tensor, Tensor]:
        """How much of a key or value made from the layer's input, and from the initial embedding, there is in that of
        their mixture, for pairs with ``amount`` a(d) (B, 1, N, 1, M, KEYS): ``(1 - a) rms(h) / rms(a)`` and
        ``a rms(h0) / rms(a)``."""
        hh, ho, oo = map(by_key, self.means(initial))
        a, b = amount, 1 - amount
        over = ((b**2 * hh + 2 * a * b * ho + a**2 * oo).clamp(min=0) + self.eps).rsqrt()
        return b * (hh + self.eps).sqrt() * over, a * (oo + self.eps).sqrt() * over

    def unrotated(self, x: Tensor, slot: Tensor | None = None) -> Tensor:
        """(B, H, L, D), or (B, H, S, D) of the slots ``slot`` (B, S), as it was before positions."""
        cos, sin = self._rotary()
        if slot is not None:
            cos, sin = (y.gather(1, slot[:, :, None].expand(-1, -1, y.shape[2])) for y in (cos, sin))
        return unrotate(x, cos, sin)

    def _rotated(self, x: Tensor) -> Tensor:
        return rotate(x, *self._rotary())

    def _rotary(self) -> tuple[Tensor, Tensor]:
        assert self.cos is not None
        assert self.sin is not None
        return self.cos, self.sin


class _MeanProduct(torch.autograd.Function):
    """The mean of h h0 of each token, (B, L) in fp32; h0 is ``state`` (B, L, E), or its rows (U, E) by ``number``. Its
    gradient for all of h0 would be a tensor as large as h, to be added up over layers and then dropped but for the
    trained tokens: it is made for their rows (R, E) alone."""

    @staticmethod
    def forward(ctx, hidden, state, number, rows, which):
        ctx.save_for_backward(hidden, state, number, which)
        return (hidden.float() * _by_slot(state, number).float()).mean(-1)

    @staticmethod
    def backward(ctx, gradient):
        hidden, state, number, which = ctx.saved_tensors
        gradient = gradient[..., None] / hidden.shape[-1]
        d_rows = (which * gradient).to(hidden.dtype).flatten(0, 1).T @ hidden.flatten(0, 1)
        return (gradient * _by_slot(state, number)).to(hidden.dtype), None, None, d_rows, None


def _by_slot(x: Tensor, number: Tensor | None) -> Tensor:
    """Each slot's, of what was computed for distinct tokens; or, without their numbers, for all slots already."""
    return x if number is None else x[number]


def _input(layer: nn.Module, hidden: Tensor, kwargs: dict[str, Any], at_sums: bool) -> LayerInput:
    cos, sin = kwargs.get("position_embeddings") or (None, None)
    return LayerInput(getattr(layer, "input_layernorm", None), hidden, cos, sin, at_sums)


@cache
def _handing_over(base: Any) -> type[nn.Module]:
    class HandsOverInput(base):
        """Hands its input and norm to the attention function."""

        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if "layer" not in kwargs:
                kwargs["layer"] = _input(self, hidden_states, kwargs, at_sums=False)
            return super().forward(hidden_states, *args, **kwargs)

    HandsOverInput.__name__ = base.__name__
    return HandsOverInput


@cache
def _at_sum_rows(base: Any) -> type[nn.Module]:
    class WorksAtSums(base):
        """The last layer, of which only [SUM] rows are read: where the batch says so, it computes no others.

        The layer is given those rows alone, so that its own code makes their queries, their sums with the residual
        stream and their MLP. Keys and values have to be of all tokens: the attention function makes them from the whole
        input. (B, L, E) -> (B, S, E). Of an 8B-parameter Llama's 218 M weights a layer 8 M are left to all rows.
        """

        works_at_sums = True

        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            batch = kwargs.get("dti")
            if batch is None or not batch.last_layer_at_sums:
                return super().forward(hidden_states, *args, **kwargs)
            slot = batch.sums.slot[:, :, None]

            def at_sums(x: Tensor) -> Tensor:
                return x.gather(1, slot.expand(-1, -1, x.shape[2]))

            kwargs["layer"] = _input(self, hidden_states, kwargs, at_sums=True)
            kwargs["position_embeddings"] = tuple(map(at_sums, kwargs["position_embeddings"]))
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = kwargs["position_ids"].gather(1, batch.sums.slot)
            return base.forward(self, at_sums(hidden_states), *args, **kwargs)

    WorksAtSums.__name__ = base.__name__
    return WorksAtSums


def hand_over_input(layer: nn.Module) -> None:
    """Let a decoder layer hand its input and norm to the attention function, as keyword ``layer``."""
    layer.__class__ = _handing_over(cast(Any, type(layer)))


def support_sum_rows(layer: nn.Module) -> None:
    """Let a model's last decoder layer work at [SUM] rows only where a batch asks for it."""
    layer.__class__ = _at_sum_rows(cast(Any, type(layer)))


def drop_sum_rows(layer: nn.Module) -> None:
    """Undo :func:`support_sum_rows`."""
    layer.__class__ = type(layer).__mro__[1]


def supports_sum_rows(layer: nn.Module) -> bool:
    return getattr(layer, "works_at_sums", False)
