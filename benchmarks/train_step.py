"""How many more targets a second does a training step on a GPU learn from, at the shape of an 8B model?

Every variant in one process and in turn, on one set of weights: the project's model, loss, clipping and optimizer step,
LoRA of rank 16 on queries and values, histories of equal interactions, medians of CUDA events after warm-up. The
sliding window runs in two forms, packed with the same masked kernel and as a dense batch of prompts under torch's
fastest causal kernel; speed-ups are over the faster one. Each variant has the row length, about --tokens, that its
prompts fill best.

A timed turn is three micro-batches of a row each, queued one behind the other, and one update (clipping and optimizer).
Rates are those of a step of --targets-per-step targets for every variant: as many micro-batches as that takes, one
update.

    python -m benchmarks.train_step                          # one GPU of 80 GB, five minutes and more of compiling
    python -m benchmarks.train_step --budget-seconds 150     # the most important variants first, until time is up
    python -m benchmarks.train_step --only dense k50         # variants of one of these forms, paradigms, k or fixes
    python -m benchmarks.train_step --texts random           # of tokens that hardly come again: forgetting costs more
    python -m benchmarks.train_step --tiny                   # the same code on a CPU, to test it
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.profiler import record_function

from benchmarks.lib import llama
from benchmarks.lib.harness import parser, publish
from benchmarks.lib.kernels import draw, profiled
from benchmarks.lib.llama import CONTEXT
from benchmarks.lib.timing import affordable, between, forget_peak_memory, gpus, mark, peak_memory_gib
from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.paradigms import DTI, DTI_GROWING, DTI_ISOLATED, SLIDING_WINDOW, Paradigm
from dti_pipeline.planning import cost
from dti_pipeline.planning.shape import SHAPES
from dti_pipeline.training.loader import MicroBatches


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

    def has(self, word: str) -> bool:
        return word in (self.paradigm.name, self.form, f"k{self.k}", *self.fixes.split())


#: The most important ones first: time may run out.
VARIANTS = (
    Variant(SLIDING_WINDOW, 1, "dense"),
    Variant(SLIDING_WINDOW, 1),
    Variant(DTI, 50),
    Variant(DTI, 180),
    Variant(DTI, 50, sum_position="nope_alibi", forgetting="linear"),
    Variant(DTI_GROWING, 50),
    Variant(DTI_ISOLATED, 50),
    Variant(DTI, 5),
    Variant(DTI, 50, sum_position="rope_alibi"),
    Variant(DTI, 50, forgetting="linear"),
    Variant(DTI, 50, sum_position="nope_alibi"),
    Variant(DTI, 10),
    Variant(DTI, 20),
)
ROWS = 3  # different ones of each variant, a micro-batch each


@dataclass
class Measured:
    """One variant's steps."""

    variant: Variant
    work: list[MicroBatches]
    pairs: float  # visible (query, key) pairs of a micro-batch
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

    def seconds(self, targets: int) -> float:
        """Of a step of so many targets."""
        passes = targets / self.targets
        return (passes * statistics.median(self.passes) + statistics.median(self.updates)) / 1000


class Bench:
    """One model, switched from variant to variant."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        cpu = given.tiny or not torch.cuda.is_available()
        accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16")
        self.device = accelerator.device
        self.shape = llama.shape_named("tiny" if given.tiny else given.shape, given.layers)
        settings = llama.lora(self.shape, frozen_weights=given.frozen_weights)
        torch.manual_seed(7)
        dtype = torch.float32 if cpu else torch.bfloat16
        self.model = llama.model(self.shape, settings, CONTEXT, 2 * given.tokens, self.device, dtype).train()
        self.adapters = sum(p.numel() for n, p in self.model.trained().items() if "lora" in n)
        self.runner = llama.runner(self.model, accelerator.prepare(self.model), accelerator)

    def prepare(self, variant: Variant) -> Measured:
        """Assemble the variant's rows, and take a step that is not counted: it compiles."""
        given, dense = self.given, variant.form == "dense"
        plan, count = llama.plan(variant.k, given.tokens, given.tokens_per_interaction, self.shape.vocabulary, ROWS,
                                 dense, texts=given.texts)  # fmt: skip
        height = len(plan) // ROWS
        work = [llama.work(plan, np.arange(i * height, (i + 1) * height), self.device) for i in range(ROWS)]
        lengths, one = plan.store.lengths(), slice(0, count)  # the prompts of a micro-batch
        tokens = np.full(count, CONTEXT * lengths[0] + variant.k * (lengths[0] + 1), np.int64)
        cut = Prompts(plan.start[one], plan.first_target[one], plan.stop[one], tokens)
        pairs = cost.visible_pairs(variant.paradigm, cut, lengths, plan.store.position, CONTEXT)
        measured = Measured(variant, work, pairs)
        self.step(measured)
        measured.forget()
        return measured

    def step(self, measured: Measured) -> None:
        """A micro-batch of each of the rows and one update, timed one by one. They are waited for once, in the end, as
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

    def flop(self, measured: Measured, targets: int) -> float:
        """Of a step of so many targets, padding not counted."""
        scale = targets / measured.targets
        tokens = measured.work[0].tokens * scale
        return cost.training_flop(self.shape, tokens, measured.pairs * scale, targets, self.adapters)


def main() -> None:
    options = parser(__doc__, gpu=True)
    options.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b")
    options.add_argument("--layers", type=int, help="fewer, for a smaller card; the table says so (default: all)")
    options.add_argument("--tokens", type=int, default=10768, help="of a micro-batch, about (default: %(default)s)")
    options.add_argument("--tokens-per-interaction", type=int, default=30, help="text and label (default: %(default)s)")
    options.add_argument("--targets-per-step", type=int, default=512)
    options.add_argument("--steps", type=int, default=3, help="turns of each variant, after two that are not counted")
    options.add_argument("--only", nargs="+", metavar="WORD", help="variants that have one of these words")
    options.add_argument("--profile", type=Path, metavar="PNG", help="a step by kind of kernel, also drawn")
    options.add_argument(
        "--frozen-weights", choices=("plain", "float8"), default="plain", help="as model.frozen_weights"
    )
    options.add_argument("--texts", choices=("zipf", "random"), default="zipf", help="how often tokens come again")
    given = options.parse_args()
    if given.tiny:
        given.tokens, given.tokens_per_interaction = 384, 4
    begun = time.monotonic()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # shapes change from step to step
    bench = Bench(given)
    wanted = [v for v in VARIANTS if given.only is None or any(v.has(word) for word in given.only)]
    measured = warmed_up(bench, wanted, given.budget_seconds - (time.monotonic() - begun), given.steps)
    for _ in range(given.steps):
        for one in measured:
            bench.step(one)
    name = "train_step" if given.frozen_weights == "plain" else f"train_step_{given.frozen_weights}"
    publish(name, table(bench, measured), given, gpus=gpus(bench.device))
    if given.profile:
        profile(bench, measured, name, given.profile)


def warmed_up(bench: Bench, variants: list[Variant], seconds: float, steps: int) -> list[Measured]:
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
            bench.runner.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
    return measured


def table(bench: Bench, measured: list[Measured]) -> list[dict[str, Any]]:
    """A row a variant; speed-ups are over the fastest form of the sliding window, bounds are arithmetic's."""
    given, targets = bench.given, bench.given.targets_per_step
    baselines = [one for one in measured if one.variant.paradigm is SLIDING_WINDOW]
    base = min(baselines, key=lambda one: one.seconds(targets), default=None)
    rows = []
    for one in measured:
        seconds, variant = one.seconds(targets), one.variant
        batch = one.work[0].batches[0]
        rows.append(
            {
                "paradigm": variant.paradigm.name,
                "form": variant.form,
                "fixes": variant.fixes,
                "k": variant.k,
                "n": CONTEXT,
                "tokens_per_interaction": given.tokens_per_interaction,
                "model": bench.shape.name,
                "frozen_weights": given.frozen_weights,
                "tokens_per_second": round(one.work[0].tokens / one.targets * targets / seconds),
                "targets_per_second": round(targets / seconds, 1),
                "speedup": round(base.seconds(targets) / seconds, 2) if base else None,
                "bound": round(bench.flop(base, targets) / bench.flop(one, targets), 2) if base else None,
                "tflops": round(bench.flop(one, targets) / seconds / 1e12, 1),
                "pass_ms": round(statistics.median(one.passes), 1),
                "pass_ms_min": round(min(one.passes), 1),
                "pass_ms_max": round(max(one.passes), 1),
                "update_ms": round(statistics.median(one.updates), 2),
                "targets_per_pass": one.targets,
                "tokens_per_pass": one.work[0].tokens,
                "distinct_tokens_per_pass": len(batch.token.unique()),
                "padding_share": round(1 - one.work[0].tokens / batch.token.numel(), 4),
                "peak_memory_gib": round(one.peak_gib, 1),
            }
        )
    return rows


def profile(bench: Bench, measured: list[Measured], name: str, path: Path) -> None:
    """A step of every variant by kind of kernel, as a table; of the faster sliding window and dti at k = 50, drawn."""
    steps = {name_of(one): profiled(lambda one=one: bench.step(one)) for one in measured}
    rows = [{"step": step} | {f"{kind} ms": time for kind, time in spent.items()} for step, spent in steps.items()]
    publish(f"{name}_profile", rows, bench.given, gpus=gpus(bench.device))
    sliding = min((one for one in measured if one.variant.paradigm is SLIDING_WINDOW), key=lambda one: one.seconds(1))
    dti = next(one for one in measured if one.variant == Variant(DTI, 50))
    draw({name: steps[name] for name in map(name_of, (sliding, dti))}, path)


def name_of(one: Measured) -> str:
    variant = one.variant
    form = f", {variant.form}" if variant.k == 1 else f" k={variant.k} {variant.fixes}".rstrip()
    passes = len(one.work)
    return f"{variant.paradigm}{form}: {passes * one.targets} targets, {passes * one.work[0].tokens:,} tokens"


if __name__ == "__main__":
    main()
