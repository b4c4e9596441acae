"""Scoring on a GPU against its own limit: tokens a second of ``score`` and of the forward pass alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.lib import home, llama
from benchmarks.lib.training import model_of, rows_of
from dti_pipeline.config import Config, LoraConfig, ModelConfig, PackingConfig, SplitConfig
from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.compilation import compile_parts
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows
from dti_pipeline.paradigms import DTI
from dti_pipeline.planning.shape import Shape

#: Histories have so many interactions, of which the last twentieth is scored.
HISTORY = 120
#: Seconds of the forward pass alone.
SECONDS = 3.0


def against_its_limit(
    shape: Shape, sizes: list[int], users: int, row_length: int, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each size of a batch: single-prompt scoring of ``users`` histories' targets by a model of ``shape``
    under LoRA adapters, compiled on a GPU, assembly and copies counted."""
    settings = Config(
        packing=PackingConfig(context=llama.CONTEXT, row_length=row_length),
        split=SplitConfig(min_history=1),
        model=ModelConfig(name_or_path=shape.name, lora=LoraConfig(rank=16), head="verbaliser"),
    )
    store = llama.log(users, HISTORY, home.PER_INTERACTION, shape.vocabulary)
    store = replace(store, split=2 * (store.position >= 0.95 * HISTORY).astype(np.int8), vocabulary=shape.vocabulary)
    rows, _ = rows_of(settings, store, DTI, "test")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(7)
    lm = backbone.random_weights(home.architecture(shape, row_length), device, dtype)
    model = model_of(settings, store, DTI, frozen_dtype=dtype, lm=lm).eval()
    model.place(model.make_plan(device, dtype))
    if model.plan.compiled_layers:
        compile_parts(model)
    return [{"model": shape.name, **_measured(model, rows, tokens, device)} for tokens in sizes]


def _measured(model: CTRModel, rows: Rows, tokens: int, device: torch.device) -> dict[str, Any]:
    every, height = np.arange(len(rows)), rows.height(tokens)
    autocast = torch.bfloat16 if device.type == "cuda" else None
    few, _ = _timed(device, lambda: score(model, rows, every[: 2 * height], tokens, device, autocast))
    taken, (target, _) = _timed(device, lambda: score(model, rows, every, tokens, device, autocast))
    layout = rows.assemble(every[:height])
    batch = Batch.of(layout, rows.store.label, int(rows.targets().max()) if device.type == "cuda" else 0)
    resident = (batch.pin() if device.type == "cuda" else batch).to(device)

    @torch.no_grad()
    def forward() -> None:
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            model(resident)

    alone = _per_call(device, forward)
    read = int((rows.stop - rows.start).sum()) * home.PER_INTERACTION + int(rows.targets().sum())
    rate, limit = read / taken, int((layout.kind != Kind.PAD).sum()) / alone
    return {
        "tokens_per_batch": height * rows.row_length,
        "tokens": read,
        "targets": len(target),
        "first_batches_seconds": round(few, 2),
        "tokens_per_second": round(rate),
        "targets_per_second": round(len(target) / taken, 1),
        "forward_tokens_per_second": round(limit),
        "share_of_forward": round(rate / limit, 3),
    }


def _timed(device: torch.device, call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, found


def _per_call(device: torch.device, call: Callable[[], None]) -> float:
    """Seconds of a call, queued one behind the other for a while."""
    once, _ = _timed(device, call)
    once, _ = _timed(device, call)
    count = max(1, round(SECONDS / once)) if device.type == "cuda" else 1
    return _timed(device, lambda: [call() for _ in range(count)])[0] / count
