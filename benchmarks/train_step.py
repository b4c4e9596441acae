"""How many more targets a second does a training step on a GPU learn from, at the shape of an 8B model?

Every variant in one process and in turn, on one set of weights: the project's model, loss, clipping and optimizer step,
LoRA of rank 16 on queries and values, histories of equal interactions, medians of CUDA events after warm-up. The
sliding window runs in two forms, packed with the same masked kernel and as a dense batch of prompts under torch's
fastest causal kernel; speed-ups are over the faster one. Each variant has the row length, about --tokens, that its
prompts fill best.

A timed turn is three passes over a row each, queued one behind the other, and one update (clipping and optimizer).
Rates are those of a step of --targets-per-step targets for every variant: as many passes as that takes, one update.

    python benchmarks/train_step.py                          # one GPU of 80 GB, five minutes and more of compiling
    python benchmarks/train_step.py --budget-seconds 150     # the most important variants first, until time is up
    python benchmarks/train_step.py --only dense k50         # variants of one of these forms, paradigms, k or fixes
    python benchmarks/train_step.py --texts random           # of tokens that hardly come again: forgetting costs more
    python benchmarks/train_step.py --tiny                   # the same code on a CPU, to test it
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

import llama
import numpy as np
import torch
from accelerate import Accelerator
from harness import parser, publish
from kernels import draw, profiled
from torch.profiler import record_function

from dti_pipeline.config import LoraConfig, ModelConfig, TrainingConfig
from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.packing.reader import Rows
from dti_pipeline.planning import cost
from dti_pipeline.planning.shape import SHAPES, Shape
from dti_pipeline.training.loader import Work
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.optimizer import optimizer_for


@dataclass(frozen=True)
class Variant:
    """A paradigm at one k, with or without the paper's fixes."""

    paradigm: str
    k: int
    form: str = "packed"  # dense: a batch of single prompts, without a mask
    sum_position: str = "rope"
    forgetting: str = "none"

    @property
    def fixes(self) -> str:
        fixes = (self.sum_position, "rope"), (self.forgetting, "none")
        return " ".join(fix for fix, default in fixes if fix != default)

    def has(self, word: str) -> bool:
        return word in (self.paradigm, self.form, f"k{self.k}", *self.fixes.split())


#: The most important ones first: time may run out.
VARIANTS = (
    Variant("sliding_window", 1, "dense"),
    Variant("sliding_window", 1),
    Variant("dti", 50),
    Variant("dti", 180),
    Variant("dti", 50, sum_position="nope_alibi", forgetting="linear"),
    Variant("dti_growing", 50),
    Variant("dti_isolated", 50),
    Variant("dti", 5),
    Variant("dti", 50, sum_position="rope_alibi"),
    Variant("dti", 50, forgetting="linear"),
    Variant("dti", 50, sum_position="nope_alibi"),
    Variant("dti", 10),
    Variant("dti", 20),
)
CONTEXT = 20
ROWS = 3  # different ones of each variant, a pass each


@dataclass
class Measured:
    """One variant's steps."""

    variant: Variant
    work: list[Work]
    pairs: float  # visible (query, key) pairs of a pass
    passes: list[float] = field(default_factory=list)  # milliseconds, each
    updates: list[float] = field(default_factory=list)
    peak_gib: float = 0.0

    @property
    def targets(self) -> int:
        return self.work[0].step.targets

    def seconds(self, targets: int) -> float:
        """Of a step of so many targets."""
        passes = targets / self.targets
        return (passes * statistics.median(self.passes) + statistics.median(self.updates)) / 1000


class Bench:
    """One model, switched from variant to variant."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.tokens, self.per_interaction = arguments.tokens, arguments.tokens_per_interaction
        self.texts = arguments.texts
        cpu = arguments.tiny or not torch.cuda.is_available()
        accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16")
        self.device = accelerator.device
        self.shape: Shape = llama.shape_named("tiny" if arguments.tiny else arguments.shape, arguments.layers)
        settings = ModelConfig(
            name_or_path=self.shape.name,
            lora=LoraConfig(rank=16, alpha=32),
            head="verbaliser",
            frozen_weights=arguments.frozen_weights,
        )
        training = TrainingConfig(learning_rate=1e-4)
        torch.manual_seed(7)
        dtype = torch.float32 if cpu else torch.bfloat16
        self.model = llama.model(self.shape, settings, CONTEXT, 2 * self.tokens, self.device, dtype).train()
        optimizer = optimizer_for(self.model, training)
        self.adapters = sum(p.numel() for n, p in self.model.trained().items() if "lora" in n)
        if self.device.type == "cuda":
            self.model.compile_layers()
        prepared = accelerator.prepare(self.model)
        self.trainer: Trainer = llama.trainer(prepared, optimizer, accelerator, training, self._plan(VARIANTS[0], 1)[0])

    def _plan(self, variant: Variant, rows: int) -> tuple[Rows, float]:
        """Rows of equal prompts, and the pairs of tokens that a pass over one row (if dense: a batch) looks at."""
        n, c, k = CONTEXT, self.per_interaction, variant.k
        prompt = n * c + k * (c + 1)
        count, length = llama.filled(prompt, self.tokens)
        store = llama.log(rows * count, n + k, c, self.shape.vocabulary, texts=self.texts)
        plan = llama.rows(store, n, k, count, length)
        if variant.form == "dense":
            plan = llama.rows(store, n, k, 1, prompt)
        of_a_row = slice(0, count)
        cut = Prompts(
            plan.start[of_a_row], plan.first_target[of_a_row], plan.stop[of_a_row], np.full(count, prompt, np.int64)
        )
        return plan, cost.visible_pairs(variant.paradigm, cut, store.lengths(), store.position, n)

    def prepare(self, variant: Variant) -> Measured:
        """Assemble the variant's rows, and take a step that is not counted: it compiles."""
        plan, pairs = self._plan(variant, ROWS)
        height = len(plan) // ROWS
        work = [llama.work(plan, np.arange(i * height, (i + 1) * height), self.device) for i in range(ROWS)]
        measured = Measured(variant, work, pairs)
        self.step(measured)
        for times in (measured.passes, measured.updates):
            times.clear()
        return measured

    def step(self, measured: Measured) -> None:
        """A pass over each of the rows and one update, timed one by one; they are waited for once, in the end, as the
        loop itself does: what a GPU would idle between a launch and a wait is no part of a step."""
        variant = measured.variant
        self.model.switch(variant.paradigm, variant.form == "dense", variant.sum_position, variant.forgetting)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        marks = [self._now()]
        for work in measured.work:
            self.trainer.gradients(work)
            marks.append(self._now())
        with record_function("update"):
            self.trainer.update(self.trainer.config.learning_rate)
        marks.append(self._now())
        *passes, update = (self._between(start, end) for start, end in pairwise(marks))
        measured.passes += passes
        measured.updates.append(update)
        if self.device.type == "cuda":
            measured.peak_gib = max(measured.peak_gib, torch.cuda.max_memory_allocated() / 2**30)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        """Milliseconds; on a GPU it waits for the end."""
        if self.device.type != "cuda":
            return (end - start) * 1000
        end.synchronize()
        return start.elapsed_time(end)

    def flop(self, measured: Measured, targets: int) -> float:
        """Of a step of so many targets, padding not counted."""
        scale = targets / measured.targets
        tokens = measured.work[0].tokens * scale
        return cost.training_flop(self.shape, tokens, measured.pairs * scale, targets, self.adapters)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b")
    options.add_argument("--layers", type=int, help="fewer, for a smaller card; the table says so (default: all)")
    options.add_argument("--tokens", type=int, default=10768, help="of a pass, about (default: %(default)s)")
    options.add_argument("--tokens-per-interaction", type=int, default=30, help="text and label (default: %(default)s)")
    options.add_argument("--targets-per-step", type=int, default=512)
    options.add_argument("--steps", type=int, default=3, help="turns of each variant, after two that are not counted")
    options.add_argument("--only", nargs="+", metavar="WORD", help="variants that have one of these words")
    options.add_argument("--budget-seconds", type=float, default=float("inf"), help="begin no variant beyond it")
    options.add_argument("--profile", type=Path, metavar="PNG", help="draw one step of the sliding window and of dti")
    options.add_argument(
        "--frozen-weights", choices=("plain", "float8"), default="plain", help="as model.frozen_weights"
    )
    options.add_argument("--texts", choices=("zipf", "random"), default="zipf", help="how often tokens come again")
    options.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    arguments = options.parse_args()
    if arguments.tiny:
        arguments.tokens, arguments.tokens_per_interaction = 384, 4
    begun = time.monotonic()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # shapes change from step to step
    bench = Bench(arguments)
    wanted = [v for v in VARIANTS if arguments.only is None or any(v.has(word) for word in arguments.only)]
    measured = warmed_up(bench, wanted, begun + arguments.budget_seconds, arguments.steps)
    for _ in range(arguments.steps):
        for one in measured:
            bench.step(one)
    gpus = [torch.cuda.get_device_name()] if bench.device.type == "cuda" else None
    name = "train_step" if arguments.frozen_weights == "plain" else f"train_step_{arguments.frozen_weights}"
    publish(name, table(bench, measured, arguments), arguments.results, gpus=gpus, commit=arguments.commit)
    if arguments.profile:
        picture(bench, measured, arguments.profile)


def warmed_up(bench: Bench, variants: list[Variant], end: float, steps: int) -> list[Measured]:
    """Every variant ready to be measured, or as many as leave time to measure them; one without room is left out."""
    measured: list[Measured] = []
    each = longest = 0.0  # seconds of a step of all of them; of the longest preparation
    for variant in variants:
        begun = time.monotonic()
        if begun + longest + steps * each > end:
            print(f"no time left for {variant}")
            continue
        try:
            measured.append(bench.prepare(variant))
            step = time.monotonic()
            bench.step(measured[-1])
            each += time.monotonic() - step
            measured[-1].passes.clear()
            measured[-1].updates.clear()
        except torch.OutOfMemoryError as error:
            print(f"no memory for {variant}: {str(error).splitlines()[0]}")
            bench.trainer.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
        longest = max(longest, time.monotonic() - begun)
        print(f"{variant} took {time.monotonic() - begun:.0f} s to prepare", flush=True)
    return measured


def table(bench: Bench, measured: list[Measured], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a variant; speed-ups are over the fastest form of the sliding window, bounds are arithmetic's."""
    targets = arguments.targets_per_step
    baselines = [one for one in measured if one.variant.paradigm == "sliding_window"]
    base = min(baselines, key=lambda one: one.seconds(targets), default=None)
    rows = []
    for one in measured:
        seconds, variant = one.seconds(targets), one.variant
        batch = one.work[0].passes[0]
        rows.append(
            {
                "paradigm": variant.paradigm,
                "form": variant.form,
                "fixes": variant.fixes,
                "k": variant.k,
                "n": CONTEXT,
                "tokens_per_interaction": bench.per_interaction,
                "model": bench.shape.name,
                "frozen_weights": arguments.frozen_weights,
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


def picture(bench: Bench, measured: list[Measured], path: Path) -> None:
    """One step each of the faster sliding window and of dti at k = 50, by kind of kernel."""
    sliding = min((one for one in measured if one.variant.paradigm == "sliding_window"), key=lambda one: one.seconds(1))
    dti = next(one for one in measured if one.variant == Variant("dti", 50))
    draw({name_of(one): profiled(lambda one=one: bench.step(one)) for one in (sliding, dti)}, path)


def name_of(one: Measured) -> str:
    form = f", {one.variant.form}" if one.variant.k == 1 else f" k={one.variant.k}"
    passes = len(one.work)
    return f"{one.variant.paradigm}{form}: {passes * one.targets} targets, {passes * one.work[0].tokens:,} tokens"


if __name__ == "__main__":
    main()
