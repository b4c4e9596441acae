"""Compiling a model's parts, as its plan says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.speed import compiler, compiler_cache

log = logging.getLogger(__name__)
#: FLOP of scores from which compiled layers save more than they cost: about half a minute of a large GPU.
WORTH_COMPILING = 5e15


def compile_parts(model: CTRModel) -> None:
    """Compile each decoder layer, and what surrounds them where that is planned.

    All layers share one graph, and the last has its own. Rows must then have one length, batches one height; sizes of
    [SUM] rows may grow a few times, and each time is a graph more. Graphs of models that were compiled before are
    forgotten: they would count as this one's.
    """
    torch.compiler.reset()
    compiler.allow_graphs()
    decoder: Any = decoder_of(model.lm)
    if model.plan.compiled_layers:
        for layer in decoder.layers:
            layer.compile(dynamic=False)
    if model.plan.compiled_surroundings:
        model.fused = cache(compiler.fused)
        for module in _around_layers(decoder):
            module.compile(dynamic=False)


def compile_to_score(model: CTRModel, tokens: int, try_out: Callable[[], object]) -> None:
    """Compile a model's parts to score so many tokens, where that is worth its time. ``try_out`` scores a few of them;
    where the compiler fails at it, the model stays as it was, and a line says so."""
    weights = sum(parameter.numel() for parameter in decoder_of(model.lm).parameters())
    if not model.plan.compiled_layers or 2.0 * weights * tokens < WORTH_COMPILING:
        return
    compile_parts(model)
    try:
        try_out()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if compiler_cache.holds_older():
            compiler_cache.give_up()
            compile_to_score(model, tokens, try_out)
            return
        log.warning("scores are computed by layers that are not compiled: %s", str(error).strip().partition("\n")[0])
        uncompile(model)


def uncompile(model: CTRModel) -> None:
    """Undo :func:`compile_parts`."""
    decoder: Any = decoder_of(model.lm)
    for module in (*decoder.layers, *_around_layers(decoder)):
        module._compiled_call_impl = None
    model.fused = compiler.not_compiled
    torch.compiler.reset()


def _around_layers(decoder: Any) -> list[nn.Module]:
    return [module for name in ("rotary_emb", "norm") if (module := getattr(decoder, name, None)) is not None]
