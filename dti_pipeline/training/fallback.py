"""The choice of how steps are computed: the fastest form that works here, and micro-batches that fit the memory.

Before the first step, forms are tried from the fastest to the plainest, each on a step whose gradients are thrown away.
A form that raises gives way to the next; where memory runs out, micro-batches are halved first, and what an earlier
process has compiled is given up first. Weights, moments and random generators are then as before.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from accelerate import Accelerator

from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.modeling.speed import compiler_cache
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.optimizer import allocate_moments
from dti_pipeline.training.progress import FellBack
from dti_pipeline.training.runner import StepRunner

log = logging.getLogger(__name__)
QUOTED = 300  # characters of an error that a line quotes


class Form(NamedTuple):
    """One way to compute steps."""

    name: str  # for users
    make: Callable[[], StepRunner]
    pads_targets: bool = False  # it works with any number of targets a row, and compiles anew for more than before


class Chosen(NamedTuple):
    """The runner that works, the loader that feeds it, and everything that was given up for it."""

    runner: StepRunner
    loader: Loader
    falls: list[FellBack]


def choose(
    forms: Sequence[Form],
    loader: Loader,
    number: int,
    optimizer: torch.optim.AdamW,
    accelerator: Accelerator,
    tell: Callable[[FellBack], None],
) -> Chosen:
    """Try ``forms``, the fastest first, on step ``number``; all processes together, with the same answer: each form
    rounds in its own way, and weights are to stay the same in all of them.

    Raises the last form's error, and InputError where a micro-batch of one row does not fit the memory. Cost: up to two
    micro-batches, and whatever compiles. Where weights are sharded, an error in one process alone leaves the others
    waiting in their exchange.
    """
    falls: list[FellBack] = []
    left = list(forms)
    while True:
        form, *slower = left
        runner, reason, full = _try(form, loader, number, optimizer, accelerator.device, last=not slower)
        failed, no_memory, older = _anywhere(accelerator, runner is None, full, compiler_cache.holds_older())
        if runner is not None and not failed:
            return Chosen(runner, _padded(loader, form, runner), falls)
        del runner  # and its memory
        halved = loader.halved() if no_memory else None
        if halved is not None:
            reason = f"out of memory; set training.tokens_per_batch to {halved.tokens_per_batch} ({reason})"
            fall = FellBack(_tokens(loader), f"micro-batches of {_tokens(halved)} tokens", reason)
            loader = halved
        elif older:
            compiler_cache.give_up()
            continue  # the same form, compiled anew
        elif slower:
            fall = FellBack(form.name, slower[0].name, reason)
            left = slower
        else:  # any other error of the last form has been raised
            raise InputError(
                f"a micro-batch of one row of {loader.rows.row_length:,} tokens does not fit the memory: make"
                " packing.row_length smaller, or keep fewer activations (training.activation_checkpointing: true), or"
                " train fewer weights (model.lora.rank), or share them over processes (training.sharding: full)"
            )
        falls.append(fall)
        log.warning("%s", fall.line)
        tell(fall)


def _try(
    form: Form, loader: Loader, number: int, optimizer: torch.optim.AdamW, device: torch.device, last: bool
) -> tuple[StepRunner | None, str, bool]:
    """The form's runner, tried on step ``number``, or none; why it may yet have to give way, and whether it ran out of
    memory. An error of the ``last`` form is raised, unless it is of memory."""
    restore_generators, works = _generators(device), False
    try:
        allocate_moments(optimizer)
        runner = form.make()
        share = _padded(loader, form, runner).micro_batches(number)
        runner.try_out(replace(share, batches=share.batches[:2]))  # the second has the first's gradients beside it
        works = True
        return runner, "it failed in another process", False
    except (InputError, CheckFailed):
        raise
    except Exception as error:
        no_memory = _out_of_memory(error)
        if last and not no_memory:
            raise
        log.debug("%s could not be had", form.name, exc_info=True)
        return None, in_one_line(error), no_memory
    finally:
        optimizer.zero_grad(set_to_none=True)
        restore_generators(works)
        if not works:
            gc.collect()  # tensors that the error's frames hold
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)


def _padded(loader: Loader, form: Form, runner: StepRunner) -> Loader:
    return replace(loader, pad_targets=runner.pads_targets or form.pads_targets)


def _generators(device: torch.device) -> Callable[[bool], None]:
    """A function that puts torch's random generators back as they are now; it is told whether a trial succeeded."""
    cpu, cuda = torch.get_rng_state(), device.type == "cuda"
    if cuda:
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
        state = generator.clone_state()

    def restore(works: bool) -> None:
        torch.set_rng_state(cpu)
        if cuda and works:  # a graph goes on drawing from the state that it has recorded
            generator.set_state(state.get_state())
        elif cuda:  # a capture that broke off leaves the generator's state inside it: another takes its place
            generator.graphsafe_set_state(state)

    return restore


def _out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory, or the CPU's, did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


def in_one_line(error: BaseException) -> str:
    """An error's type and first line, and those of the error that it was raised after."""
    first = error
    while (behind := first.__cause__ or (None if first.__suppress_context__ else first.__context__)) is not None:
        first = behind
    return _quoted(error) if first is error else f"{_quoted(error)}, after {_quoted(first)}"


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
