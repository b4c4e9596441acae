"""How much of a GPU's speed is left when several train together, and what does their exchange cost?

At the same targets a GPU and step: one process alone (the first one, while the others wait), then all of them, with and
without the exchange of gradients. LoRA on the shape of an 8B model with whole models (DDP) and sharded ones (FSDP); all
weights of a smaller one sharded. Random weights, histories of equal interactions, n = 20, the project's own model, loop
and sharding. Times are medians of CUDA events, of the slowest process.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.scaling
    torchrun --standalone --nproc-per-node 8 -m benchmarks.scaling --full-shape llama-3.1-8b
    torchrun --standalone --nproc-per-node 2 -m benchmarks.scaling --tiny   # the same code on a CPU, to test it

Efficiency is the time of a step alone over that of a step together. For sharded weights, alone means the same code with
nobody to share with; where the model does not fit one GPU there is no such time.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from benchmarks.lib import llama
from benchmarks.lib.harness import parser, publish
from benchmarks.lib.kernels import profiled
from benchmarks.lib.llama import CONTEXT
from benchmarks.lib.timing import between, forget_peak_memory, gpus, mark, peak_memory_gib
from dti_pipeline.paradigms import DTI, SLIDING_WINDOW, Paradigm
from dti_pipeline.planning.shape import SHAPES, Shape
from dti_pipeline.training.loader import MicroBatches
from dti_pipeline.training.runner import EagerRunner
from dti_pipeline.training.setup import DDP
from dti_pipeline.training.sharding import compile_layers, shard

K = {DTI: 50, SLIDING_WINDOW: 1}
#: Name -> weights that are trained, and training.sharding.
CASES = {"lora_ddp": ("lora", "none"), "full_fsdp": ("full", "full"), "lora_fsdp": ("lora", "full")}


@dataclass
class Times:
    """Milliseconds of a step; peak memory in GiB."""

    step: float
    peak: float


class Bench:
    """The processes of one run."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        cpu = given.tiny or not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16", kwargs_handlers=[DDP])
        self.device, self.world = self.accelerator.device, self.accelerator.num_processes
        self.first = self.accelerator.is_main_process
        # To wait for one another on the CPU: a barrier of NCCL keeps the GPU busy.
        self._group = dist.new_group(backend="gloo") if self.world > 1 else None

    def free(self) -> None:
        """Let go of unused memory; accelerate keeps what it has prepared."""
        self.accelerator.free_memory()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        if self._group is not None:
            dist.barrier(self._group)

    def slowest(self, times: Times) -> Times:
        """The largest of all processes' figures."""
        if self._group is None:
            return times
        figures = torch.tensor([times.step, times.peak])
        dist.all_reduce(figures, dist.ReduceOp.MAX, self._group)
        return Times(*figures.tolist())

    def model(self, shape: Shape, trained: str, sharding: str, world: int) -> llama.Model:
        """A model, compiled, or sharded over ``world`` processes."""
        cpu = self.device.type == "cpu"
        torch.manual_seed(7)
        dtype = torch.float32 if cpu or trained == "full" else torch.bfloat16
        settings = llama.lora(shape, 16 if trained == "lora" else 0)
        sharded = sharding == "full" and self.world > 1
        model = llama.model(shape, settings, CONTEXT, self.given.tokens, self.device, dtype, compiled=not sharded)
        if sharded:
            shard(model, self._mesh(world), None if cpu else torch.bfloat16)
            if not cpu:
                compile_layers(model)
        return model.train()

    def _mesh(self, world: int) -> DeviceMesh:
        """All processes; or each by itself."""
        kind = self.device.type
        if world > 1:
            return init_device_mesh(kind, (self.world,))
        return init_device_mesh(kind, (self.world, 1), mesh_dim_names=("others", "itself"))["itself"]

    def work(self, paradigm: Paradigm, shape: Shape) -> MicroBatches:
        """One row, of this process's own users."""
        given, seed = self.given, self.accelerator.process_index
        plan, _ = llama.plan(K[paradigm], given.tokens, given.tokens_per_interaction, shape.vocabulary, seed=seed)
        return llama.work(plan, np.arange(1), self.device)

    def itself(self) -> Any:
        """The part of accelerate's interface that the loop needs, for one process."""
        return SimpleNamespace(
            num_processes=1,
            process_index=0,
            device=self.device,
            autocast=self.accelerator.autocast,
            backward=lambda loss: loss.backward(),
        )

    def time(self, step: Callable[[], object]) -> Times:
        """Median of the counted steps, after two that are not."""
        for _ in range(2):
            step()
        forget_peak_memory(self.device)
        times = []
        for _ in range(self.given.steps):
            start = mark(self.device)
            step()
            times.append(between(start, mark(self.device)))
        return Times(statistics.median(times), peak_memory_gib(self.device))


def whole_step(runner: EagerRunner, work: MicroBatches, exchange: bool = True) -> None:
    with nullcontext() if exchange else runner.model.no_sync():  # type: ignore[operator]
        runner.gradients(work)
    runner.update(llama.LEARNING_RATE)


@contextmanager
def without_memory(case: str) -> Iterator[None]:
    """A case that does not fit is reported, not fatal."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        print(f"no memory for {case}: {str(error).splitlines()[0]}", flush=True)


def alone(bench: Bench, case: str, shape: Shape, paradigms: list[Paradigm]) -> dict[Paradigm, Times]:
    """The first process by itself, while the others wait. All compile at one time."""
    times: dict[Paradigm, Times] = {}
    with without_memory(f"{case} alone"):
        model = bench.model(shape, *CASES[case], world=1)
        runner = llama.runner(model, model, bench.itself())
        for paradigm in paradigms:
            model.switch(paradigm, False, "rope", "none")
            work = bench.work(paradigm, shape)
            for _ in range(2):
                whole_step(runner, work)
            bench.wait()
            if bench.first:
                times[paradigm] = bench.time(lambda work=work: whole_step(runner, work))
            bench.wait()
    return times


def together(
    bench: Bench, case: str, shape: Shape, paradigms: list[Paradigm], reference: dict[Paradigm, Times]
) -> Iterator[dict[str, Any]]:
    """All processes: a row a paradigm."""
    trained, sharding = CASES[case]
    model = bench.model(shape, trained, sharding, bench.world)
    prepared = model if sharding == "full" else bench.accelerator.prepare(model)
    runner = llama.runner(model, prepared, bench.accelerator)
    for paradigm in paradigms:
        model.switch(paradigm, False, "rope", "none")
        work = bench.work(paradigm, shape)
        times = bench.slowest(bench.time(lambda work=work: whole_step(runner, work)))
        row = facts(bench, case, shape, paradigm, work, bench.world, times)
        if paradigm in reference:
            row["efficiency"] = round(reference[paradigm].step / times.step, 4)
        if sharding == "none":
            apart = bench.slowest(bench.time(lambda work=work: whole_step(runner, work, exchange=False)))
            row["step_ms_without_exchange"] = round(apart.step, 1)
            row["exchange_share"] = round(1 - apart.step / times.step, 4)
        spent = profiled(lambda work=work: whole_step(runner, work))
        row["communication_kernels_ms"] = round(spent["communication"], 1)
        yield row


def facts(
    bench: Bench, case: str, shape: Shape, paradigm: Paradigm, work: MicroBatches, processes: int, times: Times
) -> dict[str, Any]:
    seconds = times.step / 1000
    return {
        "trained": CASES[case][0],
        "sharding": CASES[case][1],
        "model": shape.name,
        "paradigm": paradigm.name,
        "k": K[paradigm],
        "n": CONTEXT,
        "tokens_per_interaction": bench.given.tokens_per_interaction,
        "processes": processes,
        "targets_per_process_and_step": work.step.targets,
        "tokens_per_second_and_process": round(work.tokens / seconds),
        "targets_per_second_and_process": round(work.step.targets / seconds, 1),
        "targets_per_second": round(processes * work.step.targets / seconds, 1),
        "step_ms": round(times.step, 1),
        "peak_memory_gib": round(times.peak, 1),
        "efficiency": 1.0 if processes == 1 else None,
        "step_ms_without_exchange": None,
        "exchange_share": None,
        "communication_kernels_ms": None,
    }


def main() -> None:
    options = parser(__doc__, gpu=True)
    options.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b", help="for LoRA")
    options.add_argument("--full-shape", choices=sorted(SHAPES), default="llama-3.2-3b", help="all weights trained")
    options.add_argument("--layers", type=int, help="fewer, for smaller cards; the table says so (default: all)")
    options.add_argument("--tokens", type=int, default=10752, help="of a GPU's micro-batch (default: %(default)s)")
    options.add_argument("--tokens-per-interaction", type=int, default=30, help="text and label (default: %(default)s)")
    options.add_argument("--steps", type=int, default=7, help="after two that are not counted")
    given = options.parse_args()
    if given.tiny:
        given.tokens, given.tokens_per_interaction = 384, 4
        given.shape = given.full_shape = llama.TINY.name
    end = time.monotonic() + given.budget_seconds
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    bench = Bench(given)
    rows: list[dict[str, Any]] = []
    lora_alone: dict[Paradigm, Times] | None = None
    for case in given.cases:
        if bench.slowest(Times(float(time.monotonic() >= end), 0.0)).step:
            print(f"no time left for {case}", flush=True)
            continue
        shape = llama.shape_named(given.shape if CASES[case][0] == "lora" else given.full_shape, given.layers)
        paradigms = list(K) if case == "lora_ddp" else [DTI]
        # LoRA fits one GPU whole: sharding it is compared with that, once it is known.
        reference = lora_alone if case == "lora_fsdp" else None
        if reference is None:
            reference = alone(bench, case, shape, paradigms)
            bench.free()
            rows += [facts(bench, case, shape, p, bench.work(p, shape), 1, times) for p, times in reference.items()]
        if case == "lora_ddp":
            lora_alone = reference
        if bench.world > 1:
            with without_memory(case):
                rows += together(bench, case, shape, paradigms, reference)
            bench.free()
    if bench.first:
        launcher = f"torchrun --nproc-per-node {bench.world}" if bench.world > 1 else "python"
        publish(f"scaling_{bench.world}", rows, given, gpus(bench.device, bench.world), launcher)
    bench.wait()
    bench.accelerator.end_training()


if __name__ == "__main__":
    main()
