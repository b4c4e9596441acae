"""torch's compiler as the model uses it."""

from __future__ import annotations

from typing import Any

import torch

from dti_pipeline.modeling.speed import compiler_cache

#: torch's functions around a region of another precision, each with a version, as its caches ask for.
PRECISION = {f"torch.amp.autocast_mode.{name}": "1" for name in ("_enter_autocast", "_exit_autocast")}


def allow_graphs() -> None:
    """Let a function be compiled 64 times instead of 8: in training and in evaluation, for each shape of a batch and
    size of [SUM] rows. One time more is an error, since torch would fall back to slow steps without a word."""
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    _keep_graphs()


def _keep_graphs() -> None:
    """Let every graph of ours be found again by the next process. By default torch keeps none that holds an autograd
    function, as layers that forget do, or a region of another precision: they would be traced
    and cut in two at each start. What is in them is part of their key."""
    import torch._functorch.config as functorch  # torch loads both when something is compiled
    import torch._inductor.config as inductor

    if hasattr(functorch, "autograd_cache_allow_custom_autograd_functions"):
        functorch.autograd_cache_allow_custom_autograd_functions = True
    if hasattr(inductor, "unsafe_marked_cacheable_functions"):
        inductor.unsafe_marked_cacheable_functions |= PRECISION
    torch.compiler.config.cache_key_tag = torch.compiler.config.cache_key_tag or compiler_cache.key()


def not_compiled(function: Any, dynamic: bool = False) -> Any:
    """The function itself: stands in for :func:`fused` where nothing is compiled."""
    return function


def fused(function: Any, dynamic: bool = False) -> Any:
    """``function``, compiled; ``dynamic``: once for all shapes, where they are not those of all batches."""
    return torch.compile(function, dynamic=dynamic)
