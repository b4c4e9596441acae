"""torch's compiler as the model uses it."""

from __future__ import annotations

from typing import Any

import torch


def allow_graphs() -> None:
    """Let a function be compiled 64 times instead of 8: in training and in evaluation, for each shape of a batch and
    size of [SUM] rows. One time more is an error, since torch would fall back to slow steps without a word.

    Each function stays whole under DDP, which would cut it at every 25 MB of gradients to exchange some earlier. Layers
    are small enough for that."""
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def not_compiled(function: Any, dynamic: bool = False) -> Any:
    """The function itself: stands in for :func:`fused` where nothing is compiled."""
    return function


def fused(function: Any, dynamic: bool = False) -> Any:
    """``function``, compiled; ``dynamic``: once for all shapes, where they are not those of all batches."""
    return torch.compile(function, dynamic=dynamic)
