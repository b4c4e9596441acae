"""Compiling a model's parts, as its plan says."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.speed import compiler


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


def uncompile(model: CTRModel) -> None:
    """Undo :func:`compile_parts`."""
    decoder: Any = decoder_of(model.lm)
    for module in (*decoder.layers, *_around_layers(decoder)):
        module._compiled_call_impl = None
    model.fused = compiler.not_compiled
    torch.compiler.reset()


def _around_layers(decoder: Any) -> list[nn.Module]:
    return [module for name in ("rotary_emb", "norm") if (module := getattr(decoder, name, None)) is not None]
