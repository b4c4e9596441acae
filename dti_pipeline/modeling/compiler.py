"""torch's compiler as the model uses it."""

from __future__ import annotations

from typing import Any

import torch


def allow_graphs() -> None:
    """Let a piece of code be compiled 64 times, not torch's 8: in training and in evaluation, for each shape of a batch
    and size of [SUM] rows. One time more is an error, instead of slow steps without a word.

    And leave each piece whole where processes exchange gradients: torch would cut it at every 25 MB of them, the first
    time at 1, to exchange some before others are there. Layers are pieces enough for that."""
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def as_it_is(function: Any, dynamic: bool = False) -> Any:
    """In the place of :func:`fused`, where nothing is compiled."""
    return function


def fused(function: Any, dynamic: bool = False) -> Any:
    """``function``, compiled; ``dynamic``: once for all shapes, where they are not those of all batches."""
    return torch.compile(function, dynamic=dynamic)
