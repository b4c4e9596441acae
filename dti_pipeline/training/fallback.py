"""The choice of how steps are computed: the fastest form that works here, and micro-batches that fit the memory.

A training never ends because an optimisation could not be had. Before the first step, forms are tried from the fastest
to the plainest, each on a step whose gradients are thrown away. A form that raises gives way to the next; where memory
runs out, micro-batches are halved first. The first step then starts from the weights, moments and random generators
that there were before.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch.optim import Optimizer

from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.progress import FellBack
from dti_pipeline.training.runner import StepRunner

log = logging.getLogger(__name__)
#: Characters of an error that a line quotes.
QUOTED = 300


@dataclass(frozen=True)
class Form:
    """One way to compute steps: its name for users, and a function that makes the runner."""

    name: str
    make: Callable[[], StepRunner]


@dataclass(frozen=True)
class Chosen:
    """The runner that works, the loader that feeds it, and everything that was given up for it."""

    runner: StepRunner
    loader: Loader
    falls: list[FellBack]


def choose(
    forms: Sequence[Form],
    loader: Loader,
    number: int,
    optimizer: Optimizer,
    accelerator: Accelerator,
    tell: Callable[[FellBack], None],
) -> Chosen:
    """Try ``forms``, the fastest first, on step ``number``; all processes together, with the same answer.

    Each fall is logged and told in one line. Raises the last form's error, and InputError where a micro-batch of one
    row does not fit the memory. Cost: up to two micro-batches, and whatever compiles. Where weights are sharded, an
    error in one process alone leaves the others waiting in their exchange.
    """
    falls: list[FellBack] = []
    left = list(forms)
    while True:
        form, *slower = left
        trial = _Trial(form, loader, number, optimizer, accelerator)
        runner = trial.run(last=not slower)
        failed, no_memory = _anywhere(accelerator, runner is None, trial.no_memory)
        if runner is not None and not failed:
            return Chosen(runner, trial.loader, falls)
        runner = None
        reason = trial.reason or "it failed in another process"
        halved = loader.halved() if no_memory else None
        if halved is not None:
            reason = f"out of memory; set training.tokens_per_batch to {halved.tokens_per_batch} ({reason})"
            fall = FellBack(_tokens(loader), f"micro-batches of {_tokens(halved)} tokens", reason)
            loader = halved
        elif slower:
            fall = FellBack(form.name, slower[0].name, reason)
            left = slower
        else:  # any other error of the last form has been raised
            raise InputError(
                f"a micro-batch of one row of {loader.rows.row_length:,} tokens does not fit the memory: make"
                " packing.row_length smaller, or train fewer weights (model.lora.rank), or share them over processes"
                " (training.sharding: full)"
            )
        falls.append(fall)
        log.warning("%s", fall.line)
        tell(fall)


class _Trial:
    """One form, tried on one step."""

    def __init__(self, form: Form, loader: Loader, number: int, optimizer: Optimizer, accelerator: Accelerator) -> None:
        self.form, self.loader, self.number = form, loader, number
        self.optimizer, self.device = optimizer, accelerator.device
        self.reason, self.no_memory = "", False

    def run(self, last: bool) -> StepRunner | None:
        """The form's runner; None where it failed: ``reason`` and ``no_memory`` then say why. The error of the ``last``
        form is raised, unless it is of memory."""
        generators, runner = _Generators(self.device), None
        try:
            runner = self.form.make()
            self.loader = replace(self.loader, pad_targets=runner.pads_targets)
            share = self.loader.micro_batches(self.number)
            runner.try_out(replace(share, batches=share.batches[:2]))  # the second has the first's gradients beside it
            return runner
        except (InputError, CheckFailed):
            raise
        except Exception as error:
            self.no_memory = out_of_memory(error)
            if last and not self.no_memory:
                raise
            self.reason, runner = in_one_line(error), None
            log.debug("%s could not be had", self.form.name, exc_info=True)
            return None
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            generators.restore(failed=runner is None)
            if runner is None:
                gc.collect()  # tensors of what failed
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(self.device)


class _Generators:
    """The states of torch's random generators on the CPU and on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self._cpu, self._cuda = torch.get_rng_state(), None
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            generator = torch.cuda.default_generators[index]
            self._cuda = generator, generator.clone_state()

    def restore(self, failed: bool) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is None:
            return
        generator, state = self._cuda
        if failed:  # a capture that broke off leaves the generator's state inside it: another takes its place
            generator.graphsafe_set_state(state)
        else:  # a graph goes on drawing from the state that it has recorded
            generator.set_state(state.get_state())


def out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory, or the CPU's, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


def in_one_line(error: BaseException) -> str:
    """An error's type and first line, and those of the error that it was raised after."""
    first = error
    while (behind := first.__cause__ or (None if first.__suppress_context__ else first.__context__)) is not None:
        first = behind
    quoted = [_quoted(error)] + ([f"after {_quoted(first)}"] if first is not error else [])
    return ", ".join(quoted)


def _quoted(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])  # "the backend raised:", and what
    return f"{type(error).__name__}: {told}"[:QUOTED].rstrip(": ")


def _anywhere(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Each flag, True where it is in any process."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = accelerator.reduce(torch.tensor(flags, dtype=torch.int32, device=accelerator.device), "sum")
    return [count > 0 for count in counts.tolist()]


def _tokens(loader: Loader) -> str:
    return f"{loader.rows_per_batch * loader.rows.row_length:,}"
