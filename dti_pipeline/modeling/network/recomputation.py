"""Activation checkpointing: of each decoder layer only its input is kept, and the backward pass computes it again.

Memory for a third more arithmetic, under LoRA a half (Chen et al., arXiv 1604.06174).
"""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.ctr_model import CTRModel


def recompute_layers(model: CTRModel) -> None:
    """Let every decoder layer of ``model`` be computed again in the backward pass: the same numbers. To be called
    before layers are sharded or compiled."""
    random = model.settings.name_or_path is None and model.settings.dropout > 0
    for layer in backbone.decoder_of(model.lm).layers:
        layer.__class__ = _recomputed(cast(Any, type(layer)), random)


@cache
def _recomputed(base: Any, random: bool) -> type[nn.Module]:
    class Recomputed(base):
        """Recomputes the call, around whatever it consists of: hooks of sharding, a compiled graph."""

        def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            call = super().__call__
            if not (self.training and torch.is_grad_enabled()):
                return call(hidden_states, *args, **kwargs)
            # The state of random generators is only kept where something is drawn: a CUDA graph cannot read it.
            return checkpoint(call, hidden_states, *args, use_reentrant=False, preserve_rng_state=random, **kwargs)

    Recomputed.__name__ = base.__name__
    return Recomputed
