"""Timed training steps of one model that is switched from variant to variant, both sides with every trick.

Every variant is the project's model, loss, clipping and optimizer step on one set of weights. The sliding window has
two forms: rows packed with prompts under the project's masked kernel, and a dense batch of equal prompts, nothing
padded, under torch's fastest causal kernel.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.profiler import record_function

from benchmarks.lib import llama, sizes
from benchmarks.lib.llama import CONTEXT
from benchmarks.lib.timing import affordable, between, forget_peak_memory, mark, peak_memory_gib
from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.paradigms import SLIDING_WINDOW, Paradigm
from dti_pipeline.planning import cost
from dti_pipeline.training.loader import MicroBatches

MICRO_BATCHES = 3  # different ones of each variant in a turn


@dataclass(frozen=True)
class Variant:
    """A paradigm at one k, with or without the paper's fixes."""

    paradigm: Paradigm
    k: int
    form: str = "packed"  # dense: a batch of single prompts, without a mask
    sum_position: str = "rope"
    forgetting: str = "none"

    @property
    def fixes(self) -> str:
        fixes = (self.sum_position, "rope"), (self.forgetting, "none")
        return " ".join(fix for fix, default in fixes if fix != default)

    def __str__(self) -> str:
        form = f", {self.form}" if self.k == 1 else f" k={self.k} {self.fixes}".rstrip()
        return f"{self.paradigm}{form}"

    def has(self, word: str) -> bool:
        return word in (self.paradigm.name, self.form, f"k{self.k}", *self.fixes.split())


@dataclass
class Measured:
    """One variant's steps."""

    variant: Variant
    work: list[MicroBatches]
    pairs: float  # visible (query, key) pairs of a micro-batch
    first_step_seconds: float = 0.0  # the model's building, whatever compiles for this variant, and its first step
    compilation: str = ""  # what was compiled before
    passes: list[float] = field(default_factory=list)  # milliseconds, each
    updates: list[float] = field(default_factory=list)
    peak_gib: float = 0.0

    def forget(self) -> None:
        """Drop the times of steps that are not counted."""
        self.passes.clear()
        self.updates.clear()

    @property
    def targets(self) -> int:
        return self.work[0].step.targets

    @property
    def tokens(self) -> int:
        return self.work[0].tokens

    def seconds(self, targets: int) -> float:
        """Of a step of so many targets."""
        passes = targets / self.targets
        return (passes * statistics.median(self.passes) + statistics.median(self.updates)) / 1000


class Bench:
    """One model, switched from variant to variant."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, begun = given, time.monotonic()
        cpu = given.tiny or not torch.cuda.is_available()
        precision, compute = sizes.precision(cpu)
        accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
        self.device, self.shape = accelerator.device, sizes.shape_of(given)
        torch.manual_seed(7)
        size = CONTEXT, 2 * given.row_length, self.device, compute
        again = given.activation_checkpointing
        self.model = llama.model(self.shape, sizes.settings_of(given), *size, recomputed=again).train()
        lora = sum(p.numel() for name, p in self.model.trained().items() if "lora" in name)
        self.adapters = lora if given.train == "lora" else None
        self.runner = llama.runner(self.model, accelerator)
        self._building = time.monotonic() - begun
        self._compilation = "none" if cpu else "cached" if _has_cache() else "cold"

    def prepare(self, variant: Variant, rows: int | None = None, micro_batches: int = MICRO_BATCHES) -> Measured:
        """Assemble the variant's micro-batches, of ``rows`` rows each (default: of about ``--tokens``), and take a step
        that is not counted: it compiles."""
        measured = self.assembled(variant, rows or sizes.rows_per_batch(self.given, variant.k), micro_batches)
        begun = time.monotonic()
        self.step(measured)
        measured.first_step_seconds = self._building + time.monotonic() - begun
        measured.compilation = self._compilation
        if self._compilation != "none":
            self._compilation = "after others"
        measured.forget()
        return measured

    def assembled(self, variant: Variant, rows: int, micro_batches: int) -> Measured:
        given, dense = self.given, variant.form == "dense"
        size = variant.k, given.row_length, given.tokens_per_interaction, self.shape.vocabulary
        plan, count = llama.plan(*size, rows * micro_batches, dense, texts=given.texts)
        height = len(plan) // micro_batches
        parts = [np.arange(i * height, (i + 1) * height) for i in range(micro_batches)]
        lengths, one = plan.store.lengths(), slice(0, rows * count)  # the prompts of a micro-batch
        tokens = np.full(rows * count, CONTEXT * lengths[0] + variant.k * (lengths[0] + 1), np.int64)
        cut = Prompts(plan.start[one], plan.first_target[one], plan.stop[one], tokens)
        pairs = cost.visible_pairs(variant.paradigm, cut, plan.store, CONTEXT)
        return Measured(variant, [llama.work(plan, part, self.device) for part in parts], pairs)

    def step(self, measured: Measured) -> None:
        """A turn: each of the micro-batches, and one update, timed one by one. They are waited for once, in the end, as
        in the loop itself: a GPU's idle time between a launch and a wait is no part of a step."""
        variant = measured.variant
        self.model.switch(variant.paradigm, variant.form == "dense", variant.sum_position, variant.forgetting)
        forget_peak_memory(self.device)
        marks = [mark(self.device)]
        for work in measured.work:
            self.runner.gradients(work)
            marks.append(mark(self.device))
        with record_function("update"):
            self.runner.update(llama.LEARNING_RATE)
        marks.append(mark(self.device))
        *passes, update = (between(start, end) for start, end in pairwise(marks))
        measured.passes += passes
        measured.updates.append(update)
        measured.peak_gib = max(measured.peak_gib, peak_memory_gib(self.device))

    def forget(self) -> None:
        """Free what a step that ran out of memory has left."""
        self.runner.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def flop(self, measured: Measured, targets: int) -> float:
        """Of a step of so many targets, padding not counted."""
        scale = targets / measured.targets
        return cost.training_flop(self.shape, measured.tokens * scale, measured.pairs * scale, targets, self.adapters)


def warmed_up(bench: Bench, variants: Iterable[Variant], seconds: float, steps: int) -> list[Measured]:
    """Every variant ready to be measured, or as many as leave time to measure them; one without room is left out."""
    measured: list[Measured] = []
    each: list[float] = []  # seconds of a step
    for variant in affordable(variants, seconds, reserve=lambda: steps * sum(each)):
        try:
            measured.append(bench.prepare(variant))
            step = time.monotonic()
            bench.step(measured[-1])
            each.append(time.monotonic() - step)
            measured[-1].forget()
        except torch.OutOfMemoryError as error:
            print(f"no memory for {variant}: {str(error).splitlines()[0]}")
            bench.forget()
    return measured


def faster_baseline(measured: Iterable[Measured], targets: int) -> Measured | None:
    """The fastest form of the sliding window, in steps of so many targets."""
    baselines = [one for one in measured if one.variant.paradigm is SLIDING_WINDOW]
    return min(baselines, key=lambda one: one.seconds(targets), default=None)


def _has_cache() -> bool:
    """Whether the compiler kept anything of an earlier process."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return any(Path(cache_dir()).iterdir())
