"""Attention of the [SUM] rows under the paper's two fixes: their own positions, and forgetting by distance.

*Forgetting, exactly and fast.* A [SUM] reads token j at distance d through the mixed state
``h = (1 - a) h_j + a h0_j``, a = a(d). A state per (target, token) pair is unaffordable, but keys and values are linear
in the state up to RMSNorm's denominator, and that is a quadratic in a:

    k(a) = ((1 - a) W g h + a W g h0) / rms(a),   rms(a)² = (1 - a)² <h,h> + 2 a (1 - a) <h,h0> + a² <h0,h0> + eps

so two score matrices, from the keys a layer has anyway and from the initial embeddings' keys, mixed by a(d) and divided
by rms(a), give the interpolation itself and not an approximation. Cost: one more k and v projection a layer, and S x L
scores for the S [SUM] rows (S = L / (c + 1)). :func:`sum_attention_reference` is the plain form: it projects the mixed
states themselves, one distance after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dti_pipeline.modeling.distance import rotate, unrotate


@dataclass(frozen=True)
class SumRows:
    """The [SUM] rows of one batch. B rows of L tokens, at most S [SUM]s in a row."""

    slot: Tensor  # (B, S) where they stand; padded with any slot
    valid: Tensor  # (B, S) False on that padding
    visible: Tensor  # (B, 1, S, L) the paradigm's mask, their rows of it
    bias: Tensor | None  # (B, H, S, L) ALiBi, at most 0
    keep_rotation: bool  # False: neither query nor keys carry positions
    cos: Tensor | None  # (B, L, D) the batch's rotary embedding, where it is undone or keys are made
    sin: Tensor | None
    amount: Tensor | None  # (B, 1, S, L) a(d) of each pair; None: nothing is forgotten
    initial: Tensor | None  # (B, L, E) what entered the first layer

    def put(self, out: Tensor, rows: Tensor) -> Tensor:
        """Replace the [SUM] rows of ``out`` (B, H, L, D) by ``rows`` (B, H, S, D)."""
        index = self.slot[:, None, :, None].expand(-1, out.shape[1], -1, out.shape[3])
        old = torch.gather(out, 2, index)
        return out.scatter(2, index, torch.where(self.valid[:, None, :, None], rows.to(out.dtype), old))

    def take(self, x: Tensor) -> Tensor:
        """(B, H, L, D) -> the [SUM] rows (B, H, S, D)."""
        return torch.gather(x, 2, self.slot[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))

    def rotated(self, x: Tensor) -> Tensor:
        """(B, H, L, D) at the batch's positions."""
        assert self.cos is not None
        assert self.sin is not None
        return rotate(x, self.cos, self.sin)

    def unrotated(self, x: Tensor) -> Tensor:
        """(B, H, L, D) as it was before positions."""
        assert self.cos is not None
        assert self.sin is not None
        return unrotate(x, self.cos, self.sin)


def sum_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, rows: SumRows, scale: float, kwargs: dict[str, Any]
) -> Tensor:
    """Attention output of the [SUM] rows, (B, H, S, D), in fp32 scores. Keyword ``layer`` is the decoder layer's own
    memory (its norm and its input) where something is forgotten."""
    if not rows.keep_rotation:
        query, key = rows.unrotated(query), rows.unrotated(key)
    query = rows.take(query)
    if rows.amount is None:
        scores = _scores(query, key, scale)
        return _values(_softmax(scores, rows), value)

    assert rows.initial is not None
    memory: LayerMemory = kwargs["layer"]
    first_key, first_value = memory.project(module, rows.initial, rows)
    key_bias, value_bias = memory.biases(module, rows, key)
    hh, h0, oo = memory.products(rows.initial)
    a = rows.amount
    # Keys and values as W g h: without the norm's denominator (which is put back for each pair) and without biases.
    size, first_size = (hh + memory.eps).sqrt(), (oo + memory.eps).sqrt()
    key_state, value_state = (key - key_bias) * size, (value - value_bias) * size
    first_key, first_value = (first_key - key_bias) * first_size, (first_value - value_bias) * first_size
    hh, h0, oo = (x.transpose(-1, -2) for x in (hh, h0, oo))  # (B, 1, 1, L): by key
    rms = ((1 - a) ** 2 * hh + 2 * a * (1 - a) * h0 + a**2 * oo + memory.eps).sqrt()
    mixed = (1 - a) * _scores(query, key_state, scale) + a * _scores(query, first_key, scale)
    scores = mixed / rms + _scores(query, key_bias.expand_as(key), scale)
    share = _softmax(scores, rows) / rms
    return (
        _values(share * (1 - a), value_state)
        + _values(share * a, first_value)
        + _repeat(value_bias.expand_as(value)[:, :, :1], query.shape[1])
    )


def sum_attention_reference(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, rows: SumRows, scale: float, kwargs: dict[str, Any]
) -> Tensor:
    """The same from mixed states, plainly: for every amount that occurs, mix, norm, project, and use those keys and
    values where a pair has that amount. Cost: one k and v projection for every distance."""
    assert rows.amount is not None
    assert rows.initial is not None
    memory: LayerMemory = kwargs["layer"]
    if not rows.keep_rotation:
        query = rows.unrotated(query)
    query = rows.take(query)
    scores = torch.zeros(*query.shape[:3], key.shape[2], dtype=query.dtype, device=query.device)
    states = []
    for amount in rows.amount.unique():
        mixed = (1 - amount) * memory.hidden + amount * rows.initial
        mixed_key, mixed_value = memory.project(module, mixed, rows)
        here = rows.amount == amount
        scores = torch.where(here, _scores(query, mixed_key, scale), scores)
        states.append((here, mixed_value))
    share = _softmax(scores, rows)
    return torch.stack([_values(share * here, mixed_value) for here, mixed_value in states]).sum(0)


@dataclass(frozen=True)
class LayerMemory:
    """A decoder layer's input and its RMSNorm: what forgetting needs and an attention function is not given."""

    norm: Any  # None where a layer norms nothing before attention; the probe refuses it
    hidden: Tensor  # (B, L, E)

    @property
    def eps(self) -> float:
        return float(getattr(self.norm, "variance_epsilon", getattr(self.norm, "eps", 0.0)))

    def project(self, module: Any, state: Tensor, rows: SumRows) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H_kv, L, D) of a state (B, L, E), rotated where the batch's are."""
        normed = self.norm(state)
        shape = (*state.shape[:2], -1, module.head_dim)
        key = module.k_proj(normed).view(shape).transpose(1, 2)
        value = module.v_proj(normed).view(shape).transpose(1, 2)
        return (rows.rotated(key) if rows.keep_rotation else key), value

    def biases(self, module: Any, rows: SumRows, like: Tensor) -> tuple[Tensor, Tensor]:
        """Biases of the k and v projections as they appear in ``like`` (B, H_kv, L, D); zeros where there are none."""
        biases = []
        for projection in (module.k_proj, module.v_proj):
            bias = getattr(projection, "bias", None)
            if bias is None:
                biases.append(torch.zeros((), dtype=like.dtype, device=like.device).expand(1, like.shape[1], 1, 1))
            else:
                biases.append(bias.view(1, like.shape[1], 1, like.shape[3]))
        key, value = biases
        if key.shape[-1] != 1 and rows.keep_rotation:
            key = rows.rotated(key.expand(like.shape))
        return key, value

    def products(self, initial: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean squares and mean product of state and initial embedding, each (B, 1, L, 1), in fp32."""
        h, o = self.hidden.float(), initial.float()
        return tuple((x * y).mean(-1)[:, None, :, None] for x, y in ((h, h), (h, o), (o, o)))  # type: ignore[return-value]


def _scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(B, H, S, D) x (B, H_kv, L, D) -> (B, H, S, L)."""
    batch, heads, count, width = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, width)
    return (grouped @ key.to(query.dtype).transpose(2, 3)).view(batch, heads, count, -1) * scale


def _values(share: Tensor, value: Tensor) -> Tensor:
    """(B, H, S, L) x (B, H_kv, L, D) -> (B, H, S, D)."""
    batch, heads, count, length = share.shape
    grouped = share.reshape(batch, value.shape[1], -1, length).to(value.dtype)
    return (grouped @ value).view(batch, heads, count, -1)


def _softmax(scores: Tensor, rows: SumRows) -> Tensor:
    scores = scores.float()
    if rows.bias is not None:
        scores = scores + rows.bias
    return scores.masked_fill(~rows.visible, float("-inf")).softmax(-1)


def _repeat(x: Tensor, heads: int) -> Tensor:
    return x.repeat_interleave(heads // x.shape[1], dim=1)
