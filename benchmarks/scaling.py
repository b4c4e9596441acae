"""How much of a GPU's speed is left when several train together, and what does their exchange cost?

At the same targets a GPU and step: one process alone (the first one, while the others wait), then all of them, with and
without the exchange of gradients. LoRA on the shape of an 8B model with whole models (DDP) and shared-out ones (FSDP);
all weights of a smaller one shared out. Random weights, histories of equal interactions, n = 20, the project's own
model, loop and sharding. Times are medians of CUDA events, of the slowest process.

    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py
    torchrun --standalone --nproc-per-node 8 benchmarks/scaling.py --full-shape llama-3.1-8b
    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py --tiny   # the same code on a CPU, to test it

Efficiency is the time of a step alone over that of a step together. For weights that are shared out, alone means the
same code with nobody to share with; where the model does not fit one GPU there is no such time.
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

import llama
import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from harness import parser, publish
from kernels import profiled
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from dti_pipeline.config import LoraConfig, ModelConfig, TrainingConfig
from dti_pipeline.planning.shape import SHAPES, Shape
from dti_pipeline.training.loader import Work
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.sharding import shard
from dti_pipeline.training.train import DDP

CONTEXT = 20
K = {"dti": 50, "sliding_window": 1}


@dataclass(frozen=True)
class Case:
    """What is trained, and how several processes do it."""

    trained: str  # lora or full
    sharding: str  # none or full, as training.sharding

    @property
    def name(self) -> str:
        return f"{self.trained}_{'fsdp' if self.sharding == 'full' else 'ddp'}"


CASES = {case.name: case for case in (Case("lora", "none"), Case("full", "full"), Case("lora", "full"))}


@dataclass
class Times:
    """Milliseconds of a step; peak memory in GiB."""

    step: float
    peak: float


class Bench:
    """The processes of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        cpu = arguments.tiny or not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16", kwargs_handlers=[DDP])
        self.device, self.world = self.accelerator.device, self.accelerator.num_processes
        self.first = self.accelerator.is_main_process
        # To wait for one another on the CPU: a barrier of NCCL keeps the GPU busy.
        self._group = dist.new_group(backend="gloo") if self.world > 1 else None

    def say(self, text: str) -> None:
        if self.first:
            print(text, flush=True)

    def free(self) -> None:
        """Let go of what nothing refers to any more; accelerate keeps what it has prepared."""
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

    def agree(self, wish: bool) -> bool:
        """Whether every process wishes it."""
        return self.slowest(Times(0.0 if wish else 1.0, 0.0)).step == 0.0

    def model(self, shape: Shape, trained: str) -> llama.Model:
        rank = 16 if trained == "lora" else 0
        settings = ModelConfig(name_or_path=shape.name, lora=LoraConfig(rank=rank, alpha=32), head="verbaliser")
        whole = self.device.type == "cpu" or trained == "full"
        torch.manual_seed(7)
        dtype = torch.float32 if whole else torch.bfloat16
        return llama.model(shape, settings, CONTEXT, self.arguments.tokens, self.device, dtype).train()

    def work(self, paradigm: str, shape: Shape) -> Work:
        """One row, of this process's own users."""
        c, k = self.arguments.tokens_per_interaction, K[paradigm]
        count, length = llama.filled(CONTEXT * c + k * (c + 1), self.arguments.tokens)
        store = llama.log(count, CONTEXT + k, c, shape.vocabulary, seed=self.accelerator.process_index)
        plan = llama.rows(store, CONTEXT, k, count, length)
        return llama.work(plan, np.arange(1), self.device)

    def trainer(self, model: torch.nn.Module, prepared: torch.nn.Module, accelerator: Any) -> Trainer:
        training = TrainingConfig(learning_rate=1e-4)
        plan = llama.rows(llama.log(1, CONTEXT + 1, 2, 8), CONTEXT, 1, 1, llama.TILE)
        return llama.trainer(prepared, optimizer_for(model, training), accelerator, training, plan)

    def alone(self) -> Any:
        """What the loop needs of accelerate where there is one process."""
        return SimpleNamespace(
            num_processes=1,
            process_index=0,
            device=self.device,
            autocast=self.accelerator.autocast,
            no_sync=lambda model: nullcontext(),
            backward=lambda loss: loss.backward(),
        )

    def mesh(self, together: bool) -> DeviceMesh:
        """All processes; or each by itself."""
        kind = self.device.type
        if together:
            return init_device_mesh(kind, (self.world,))
        return init_device_mesh(kind, (self.world, 1), mesh_dim_names=("others", "itself"))["itself"]

    def time(self, step: Callable[[], object]) -> Times:
        """Median of the counted steps, after two that are not: they compile."""
        for _ in range(2):
            step()
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(self.arguments.steps):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if cuda else (None, None)
            start = time.perf_counter()
            if begin is not None and end is not None:
                begin.record()
            step()
            if begin is not None and end is not None:
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end))
            else:
                times.append((time.perf_counter() - start) * 1000)
        return Times(statistics.median(times), torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0)


def whole_step(trainer: Trainer, work: Work, exchange: bool = True) -> None:
    if exchange:
        trainer.gradients(work)
    else:
        with trainer.model.no_sync():  # type: ignore[operator]
            trainer.gradients(work)
    trainer.update(trainer.config.learning_rate)


@contextmanager
def without_memory(what: str) -> Iterator[None]:
    """Room that is too small is said, not fatal."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        print(f"no memory for {what}: {str(error).splitlines()[0]}", flush=True)


def alone(bench: Bench, case: Case, shape: Shape, paradigms: list[str]) -> tuple[dict[str, Times], llama.Model | None]:
    """The first process by itself, while the others wait; and the model, ready for all. All compile at one time."""
    mesh = bench.mesh(together=False) if case.sharding == "full" and bench.world > 1 else None
    times: dict[str, Times] = {}
    model = None
    with without_memory(f"{case.name} alone"):
        model = bench.model(shape, case.trained)
        prepare(bench, model, mesh)
        trainer = bench.trainer(model, model, bench.alone())
        for paradigm in paradigms:
            model.switch(paradigm, False, "rope", "none")
            work = bench.work(paradigm, shape)
            for _ in range(2):
                whole_step(trainer, work)
            bench.wait()
            if bench.first:
                times[paradigm] = bench.time(lambda work=work: whole_step(trainer, work))
            bench.wait()
    return times, model if mesh is None else None


def prepare(bench: Bench, model: llama.Model, mesh: DeviceMesh | None) -> None:
    if mesh is not None:
        shard(model, mesh, None if bench.device.type == "cpu" else torch.bfloat16)
    elif bench.device.type == "cuda":
        model.compile_layers()


def together(
    bench: Bench,
    case: Case,
    shape: Shape,
    paradigms: list[str],
    reference: dict[str, Times],
    model: llama.Model | None,
) -> list[dict[str, Any]]:
    """All processes: a row a paradigm."""
    rows: list[dict[str, Any]] = []
    mesh = bench.mesh(together=True) if case.sharding == "full" else None
    if model is None:
        model = bench.model(shape, case.trained)
        prepare(bench, model, mesh)
    prepared = model if mesh is not None else bench.accelerator.prepare(model)
    trainer = bench.trainer(model, prepared, bench.accelerator)
    for paradigm in paradigms:
        model.switch(paradigm, False, "rope", "none")
        work = bench.work(paradigm, shape)
        times = bench.slowest(bench.time(lambda work=work: whole_step(trainer, work)))
        row = facts(bench, case, shape, paradigm, work, bench.world, times)
        if paradigm in reference:
            row["efficiency"] = round(reference[paradigm].step / times.step, 4)
        if case.sharding == "none":
            apart = bench.slowest(bench.time(lambda work=work: whole_step(trainer, work, exchange=False)))
            row["step_ms_without_exchange"] = round(apart.step, 1)
            row["exchange_share"] = round(1 - apart.step / times.step, 4)
        spent = profiled(lambda work=work: whole_step(trainer, work))
        row["communication_kernels_ms"] = round(spent["communication"], 1)
        rows.append(row)
    return rows


def facts(
    bench: Bench, case: Case, shape: Shape, paradigm: str, work: Work, processes: int, times: Times
) -> dict[str, Any]:
    seconds = times.step / 1000
    return {
        "trained": case.trained,
        "sharding": case.sharding,
        "model": shape.name,
        "paradigm": paradigm,
        "k": K[paradigm],
        "n": CONTEXT,
        "tokens_per_interaction": bench.arguments.tokens_per_interaction,
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
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    options.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.1-8b", help="for LoRA")
    options.add_argument("--full-shape", choices=sorted(SHAPES), default="llama-3.2-3b", help="all weights trained")
    options.add_argument("--layers", type=int, help="fewer, for smaller cards; the table says so (default: all)")
    options.add_argument("--tokens", type=int, default=10752, help="of a GPU's pass at most (default: %(default)s)")
    options.add_argument("--tokens-per-interaction", type=int, default=30, help="text and label (default: %(default)s)")
    options.add_argument("--steps", type=int, default=7, help="after two that are not counted")
    options.add_argument("--budget-seconds", type=float, default=float("inf"), help="begin no case beyond it")
    options.add_argument("--tiny", action="store_true", help="a tiny model on the CPU")
    arguments = options.parse_args()
    if arguments.tiny:
        arguments.tokens, arguments.tokens_per_interaction = 384, 4
        arguments.shape = arguments.full_shape = llama.TINY.name
    end = time.monotonic() + arguments.budget_seconds
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    bench = Bench(arguments)
    rows: list[dict[str, Any]] = []
    lora_alone: dict[str, Times] = {}
    for name in arguments.cases:
        if not bench.agree(time.monotonic() < end):
            bench.say(f"no time left for {name}")
            continue
        begun, case = time.monotonic(), CASES[name]
        shape = llama.shape_named(arguments.shape if case.trained == "lora" else arguments.full_shape, arguments.layers)
        paradigms = list(K) if case.trained == "lora" and case.sharding == "none" else ["dti"]
        # LoRA fits one GPU whole: sharing it out is measured against that, once it is known.
        known = case.name == "lora_fsdp" and "lora_ddp" in arguments.cases[: arguments.cases.index(name)]
        reference, model = (lora_alone, None) if known else alone(bench, case, shape, paradigms)
        bench.free()
        if not known:
            rows += [
                facts(bench, case, shape, paradigm, bench.work(paradigm, shape), 1, times)
                for paradigm, times in reference.items()
            ]
        if case.name == "lora_ddp":
            lora_alone = reference
        if bench.world > 1:
            with without_memory(name):
                rows += together(bench, case, shape, paradigms, reference, model)
            del model
            bench.free()
        bench.say(f"{name} took {time.monotonic() - begun:.0f} s")
    if bench.first:
        launcher = f"torchrun --nproc-per-node {bench.world}" if bench.world > 1 else "python"
        gpus = [torch.cuda.get_device_name()] * bench.world if bench.device.type == "cuda" else None
        publish(f"scaling_{bench.world}", rows, arguments.results, launcher, gpus, arguments.commit)
    bench.wait()
    bench.accelerator.end_training()


if __name__ == "__main__":
    main()
