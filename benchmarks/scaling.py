"""How much of a GPU's speed is left when several train together, at equal work a GPU?

The first process trains alone while the others wait, then all of them together: the project's own loop, loader and
stopwatch, micro-batches of one size and as many of them a step and process, a log of equal interactions in packed
rows, n = 20, random weights. Whole models or sharded ones (FSDP), LoRA or all weights. Alone a model is whole; where it
does not fit one GPU there is no such time. A whole model serves for both, so that it is compiled once, in all processes
at a time. Efficiency is the tokens a second of one process among all over those of the one alone. A call's rows take
the place of those of the same model and training in the file; all others stay.

    torchrun --standalone --nproc-per-node 2 -m benchmarks.scaling --shape smollm2-135m qwen2.5-1.5b --train lora all
    torchrun --standalone --nproc-per-node 8 -m benchmarks.scaling --sharding full
    torchrun --standalone --nproc-per-node 2 -m benchmarks.scaling --tiny   # the same code on a CPU, to test it
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.lib import llama, sizes
from benchmarks.lib.harness import parser, publish
from benchmarks.lib.llama import CONTEXT
from benchmarks.lib.timing import forget_peak_memory, gpus, peak_memory_gib
from benchmarks.lib.training import ready, trainer_of
from dti_pipeline.config import TrainingConfig
from dti_pipeline.paradigms import DTI, SLIDING_WINDOW, Paradigm
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.graphed import GraphedRunner
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.sharding import shard
from dti_pipeline.training.steps import Steps

K = {SLIDING_WINDOW: 1, DTI: 50}
#: Steps' worth of different rows a process.
DIFFERENT_STEPS = 4
WARM_UP_STEPS = 3


class Processes:
    """The processes of one run."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.cpu = given.tiny or not torch.cuda.is_available()
        self.precision, self.compute = sizes.precision(self.cpu)
        self.accelerator = Accelerator(cpu=self.cpu, mixed_precision=self.precision)
        self.device, self.world = self.accelerator.device, self.accelerator.num_processes
        self.first = self.accelerator.is_main_process
        # To wait for one another on the CPU: a barrier of NCCL keeps the GPU busy.
        self._group = dist.new_group(backend="gloo") if self.world > 1 else None

    def wait(self) -> None:
        if self._group is not None:
            dist.barrier(self._group)

    def largest(self, figure: float) -> float:
        """The largest of all processes' figures."""
        if self._group is None:
            return figure
        figures = torch.tensor([figure], dtype=torch.float64)
        dist.all_reduce(figures, dist.ReduceOp.MAX, self._group)
        return float(figures)

    def free(self) -> None:
        """Let go of unused memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def itself(self) -> Any:
        """The part of accelerate's interface that the loop needs, for one process by itself."""
        return SimpleNamespace(
            num_processes=1,
            process_index=0,
            device=self.device,
            autocast=self.accelerator.autocast,
            backward=lambda loss: loss.backward(),
        )


def ready_to_train(
    processes: Processes, given: argparse.Namespace, paradigm: Paradigm, sharded: bool = False
) -> Trainer:
    """Steps of ``--passes`` micro-batches: of one process by itself, or of all of them, each with its part of the
    weights."""
    device, k, world = processes.device, K[paradigm], processes.world if sharded else 1
    shape, height = sizes.shape_of(given), sizes.rows_per_batch(given, k)
    count = DIFFERENT_STEPS * processes.world * given.passes * height
    rows, _ = llama.plan(k, given.row_length, given.tokens_per_interaction, shape.vocabulary, count, texts=given.texts)
    training = TrainingConfig(
        epochs=1e4,  # more than is trained
        targets_per_step=world * given.passes * height * int(rows.targets()[0]),
        tokens_per_batch=height * rows.row_length,
        learning_rate=llama.LEARNING_RATE,
        dtype="float32" if processes.cpu else "bfloat16",
        cuda_graph=not given.no_cuda_graph,
        activation_checkpointing=given.activation_checkpointing,
        evaluations=0,
        checkpoint_seconds=10**9,
        processes=world,
        sharding="full" if sharded else "none",
    )
    torch.manual_seed(7)
    size = CONTEXT, rows.row_length, device, processes.compute
    model = llama.untrained(shape, sizes.settings_of(given), *size, paradigm, given.activation_checkpointing)
    if not sharded:
        return trainer_of(model, ready(model, device, training), processes.itself(), training, rows)
    plan = model.make_plan(device, processes.compute, sharded=True)
    model.plan = plan.without("compiled_surroundings", "weights are sharded")
    shard(model, init_device_mesh(device.type, (world,)), None if processes.cpu else processes.compute)
    return trainer_of(model, optimizer_for(model, training), processes.accelerator, training, rows)


def among_all(processes: Processes, alone: Trainer) -> Trainer:
    """The training that each process is ready for by itself, by all of them together: each has as many micro-batches a
    step, of the same shapes, and computes them with the same code or graph."""
    accelerator, world, rows = processes.accelerator, processes.world, alone.loader.rows
    config = replace(alone.config, targets_per_step=world * alone.config.targets_per_step, processes=world)
    steps = Steps(rows, config.targets_per_step, config.epochs, config.seed)
    loader = replace(alone.loader, steps=steps, rank=accelerator.process_index, world=world)
    return replace(alone, loader=loader, accelerator=accelerator, config=config, progress=Progress())


def measured(processes: Processes, given: argparse.Namespace, paradigm: Paradigm, trainer: Trainer) -> dict[str, Any]:
    """A row of the table: some steps."""
    device, world, targets_per_step = processes.device, trainer.config.processes, trainer.config.targets_per_step
    trainer.run(after(WARM_UP_STEPS))
    warm = trainer.progress.step
    forget_peak_memory(device)
    trainer = replace(trainer, progress=Progress(step=warm))
    trainer.run(after(given.steps))
    done = trainer.progress
    steps, tokens = done.step - warm, done.tokens_seen / world
    seconds, peak = done.train_seconds, peak_memory_gib(device)
    if world > 1:
        seconds, peak = processes.largest(seconds), processes.largest(peak)
    targets = targets_per_step * steps
    return {
        **sizes.facts_of(given),
        "sharding": given.sharding,
        "paradigm": paradigm.name,
        "k": K[paradigm],
        "processes": world,
        "targets_per_process_and_step": targets_per_step // world,
        "tokens_per_second_and_process": round(tokens / seconds),
        "targets_per_second_and_process": round(targets / world / seconds, 1),
        "targets_per_second": round(targets / seconds, 1),
        "step_ms": round(seconds / steps * 1000, 2),
        "peak_memory_gib": round(peak, 1),
        "cuda_graph": isinstance(trainer.runner, GraphedRunner),
        "counted_steps": steps,
        "efficiency": 1.0 if world == 1 else None,
    }


def after(count: int) -> Callable[[], bool]:
    """True from the call after ``count`` of them."""
    asked = iter(range(count))
    return lambda: next(asked, None) is None


@contextmanager
def without_memory(case: str) -> Iterator[None]:
    """A case that does not fit is reported, not fatal."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        print(f"no memory for {case}: {str(error).splitlines()[0]}", flush=True)


def main() -> None:
    options = parser(__doc__, gpu=True)
    sizes.add_options(options, several=True)
    options.add_argument("--sharding", choices=("none", "full"), default="none", help="as training.sharding")
    options.add_argument(
        "--passes", type=int, default=1, help="micro-batches a step and process (default: %(default)s)"
    )
    options.add_argument("--steps", type=int, default=20, help="counted steps, after three (default: %(default)s)")
    options.add_argument("--no-cuda-graph", action="store_true", help="launch a pass kernel by kernel, alone too")
    given = options.parse_args()
    begun, longest = time.monotonic(), 0.0
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    processes = Processes(given)
    launcher = f"torchrun --nproc-per-node {processes.world}" if processes.world > 1 else "python"
    found = gpus(processes.device, processes.world)
    for case in sizes.cases(given):
        rows: list[dict[str, Any]] = []
        for paradigm in K:
            name, start = f"{paradigm}, {case.shape}, {case.train}", time.monotonic()
            if processes.largest(start - begun + longest) > given.budget_seconds:
                print(f"no time left for {name}", flush=True)
                continue
            rows += compared(processes, case, paradigm, name)
            longest = max(longest, time.monotonic() - start)
            if processes.first:
                print(f"{name} took {time.monotonic() - start:.0f} s", flush=True)
        if processes.first and rows:
            publish(f"scaling_{processes.world}", rows, given, found, launcher, case=(*sizes.CASE, "sharding"))
    processes.wait()
    processes.accelerator.end_training()


def compared(processes: Processes, given: argparse.Namespace, paradigm: Paradigm, name: str) -> list[dict[str, Any]]:
    """Rows of one process alone, which the first one has, and of all together."""
    processes.free()
    rows: list[dict[str, Any]] = []
    alone, sharded = None, given.sharding == "full"
    with without_memory(f"{name}, alone"):
        if processes.first or not sharded:
            alone = ready_to_train(processes, given, paradigm)
            if processes.first:
                rows.append(measured(processes, given, paradigm, alone))
    if sharded:
        alone = None
        processes.free()
    without = processes.largest(alone is None and not sharded)  # in any process; they wait for the first one here
    if without or processes.world == 1:
        return rows
    with without_memory(f"{name}, together"):
        trainer = among_all(processes, alone) if alone else ready_to_train(processes, given, paradigm, sharded=True)
        together = measured(processes, given, paradigm, trainer)
        if rows:
            pace = "tokens_per_second_and_process"
            together["efficiency"] = round(together[pace] / rows[0][pace], 4)
        rows.append(together)
    return rows


if __name__ == "__main__":
    main()
