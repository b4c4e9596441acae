"""The attention function that transformers calls: it obeys the batch's :class:`BatchAttention` or raises.

It is registered under :data:`NAME`. transformers makes no mask for a name that it does not know, and this function
takes none from it: a call without a :class:`BatchAttention` is an error. So no wiring mistake becomes plain causal
attention in silence.

One backend call serves text, label and [SUM] queries alike. Where [SUM]s have a rule of their own (positions,
forgetting), an operator of :mod:`dti_pipeline.modeling.attention.sums` computes their rows, one in c + 1, and those
replace what the backend made of them. In the last layer they may be the only rows
(:func:`dti_pipeline.modeling.attention.layers.support_sum_rows`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums.rows import SumRows, with_rows

NAME = "dti"
#: Keywords that an architecture may pass. Positions are in query and key already; a cache is never used in training.
HONOURED = frozenset({"dti", "layer", "position_ids", "sliding_window", "use_cache"})


class Backend(Protocol):
    """One way to compute the attention of a batch."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: LayerInput | None
    ) -> Tensor:
        """Queries (B, H, L, D), keys and values (B, H_kv, L, D) -> (B, H, L, D)."""
        ...


@dataclass(frozen=True)
class BatchAttention:
    """How every layer attends in one batch."""

    backend: Backend
    sums: SumRows | None = None  # where [SUM] rows are told apart
    last_layer_at_sums: bool = False  # the last layer computes [SUM] rows only
    windowed: BatchAttention | None = None  # in layers that look back no further than ``window`` positions
    window: int = 0

    def of_layer(self, window: int | None, length: int) -> BatchAttention:
        """How a layer attends whose own window is ``window``, in rows of ``length`` tokens. RuntimeError where that is
        another window than the batch was made for."""
        if window and window == self.window and self.windowed is not None:
            return self.windowed
        if (window or length) < length:
            raise RuntimeError(f"attention was asked for a window of {window} in {length} tokens")
        return self


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (B, H, L, D), key and value (B, H_kv, L, D) -> (B, L, H, D).

    Raises RuntimeError without a :class:`BatchAttention` (keyword ``dti``), and for what it cannot honour: a mask of
    another kind, dropout, a window that the batch was not made for, any keyword that is not in :data:`HONOURED`
    (soft-capping, attention sinks, ..).
    """
    batch: BatchAttention | None = kwargs.get("dti")
    layer: LayerInput | None = kwargs.get("layer")
    if batch is None:
        raise RuntimeError("attention was called without its batch: it would have been plain causal")
    if attention_mask is not None:
        raise RuntimeError("attention was given a mask beside that of its batch: only one can be right")
    if dropout:
        raise RuntimeError("attention dropout is not supported")
    unknown = [name for name, wish in kwargs.items() if name not in HONOURED and wish is not None and wish is not False]
    if unknown:
        raise RuntimeError(f"attention was asked for what it does not do: {', '.join(unknown)}")
    length = key.shape[2] if layer is None else layer.hidden.shape[1]
    batch = batch.of_layer(kwargs.get("sliding_window"), length)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    sums = batch.sums
    if layer is not None and layer.at_sums:
        assert sums is not None
        return _at_sums(module, query, None, sums, scale, layer), None
    sum_query = None
    if sums is not None and sums.have_own_rule:
        query, sum_query = with_rows(query, sums.slot)
    # As layers want it, with a token's heads side by side: else all of it would be copied once more.
    out = batch.backend.attend(module, query, key, value, scale, layer).transpose(1, 2)
    if sum_query is not None:
        assert sums is not None
        out = sums.put(out, _at_sums(module, sum_query, (key, value), sums, scale, layer))
    return out, None


def _at_sums(
    module: nn.Module,
    query: Tensor,
    given: tuple[Tensor, Tensor] | None,
    sums: SumRows,
    scale: float,
    layer: LayerInput | None,
) -> Tensor:
    """Attention (B, S, H, D) of the [SUM] rows' queries (B, H, S, D) over ``given`` keys and values at the batch's
    positions; without them, over those that the layer's whole input makes."""
    assert layer is not None
    if given is None:
        key, value = layer.project(module, layer.hidden, sums.keep_rotation)
    else:
        key, value = given
        key = key if sums.keep_rotation else layer.unrotated(key)
    query = query if sums.keep_rotation else layer.unrotated(query, sums.slot)
    return sums.operator(module, query, key, value, sums, scale, layer).transpose(1, 2)


AttentionInterface.register(NAME, attend)
