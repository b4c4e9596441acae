"""The training loop: the same for every paradigm and every step runner. Loss, schedule and steps count targets."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dti_pipeline.config import TrainingConfig
from dti_pipeline.errors import CheckFailed
from dti_pipeline.training.average import Average
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.flat import FlatAdamW
from dti_pipeline.training.loader import Loader, MicroBatches
from dti_pipeline.training.optimizer import learning_rate
from dti_pipeline.training.progress import Evaluated, Listener, Stepped
from dti_pipeline.training.runner import StepRunner

#: Points of the loss curve at most: enough to draw, few enough to store.
REPORTS = 200


class Stopwatch:
    """Adds the seconds of training proper to ``progress``, by the clock and of the processor: stopped during evaluation
    and checkpoints.

    On a GPU starting and stopping wait for queued kernels, whose time counts; reading does not wait.
    """

    def __init__(self, progress: Progress, device: torch.device) -> None:
        self._progress, self._device = progress, device
        self.start()

    def start(self) -> None:
        self._since, self._processor_since = self._now()

    def stop(self) -> None:
        clock, processor = self._now()
        self._progress.train_seconds += clock - self._since
        self._progress.processor_seconds += processor - self._processor_since

    def read(self) -> float:
        """Seconds so far by the clock, of a watch that runs."""
        return self._progress.train_seconds + time.perf_counter() - self._since

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the accelerator's allocator; of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass(frozen=True)
class _Pending:
    """A report of a step that the device may still be computing."""

    progress: Progress  # as it was
    learning_rate: float
    numbers: Callable[[], list[float]]  # mean loss over the targets since the last report, gradient norm


@dataclass
class Trainer:
    """One training in progress. ``evaluate`` scores the validation targets; ``checkpoint`` writes resume state."""

    model: nn.Module
    runner: StepRunner
    loader: Loader
    accelerator: Accelerator
    config: TrainingConfig
    progress: Progress
    emit: Listener
    evaluate: Callable[[], dict[str, float]]
    checkpoint: Callable[[], None]
    average: Average | None = None  # of the weights: evaluated in their place
    first_step: Callable[[], None] | None = None  # called once, after the first step of this process
    _wishes: Callable[[], list[float]] | None = None  # of all processes, a step ago
    _pending: _Pending | None = None

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Train to the end, or until ``should_stop``; True when all steps are done."""
        progress, steps = self.progress, self.loader.steps
        report_every = max(1, steps.count // REPORTS)
        evaluations = self.config.evaluations
        evaluate_after = {round(steps.count * (i + 1) / evaluations) for i in range(evaluations)}  # evenly spread
        waits = self.accelerator.device.type == "cpu"  # a step is over when its call returns
        losses: list[Tensor] = []
        counted = 0
        self.model.train()
        last_checkpoint = time.monotonic()
        watch = Stopwatch(progress, self.accelerator.device)
        for share in self.loader.start(progress.step):
            loss, norm, rate = self._step(share)
            first_step, self.first_step = self.first_step, None
            if first_step is not None:
                first_step()
            self._report(watch)  # of the step before, while a GPU is busy with this one
            progress.step += 1
            if self.average is not None:
                self.average.update(progress.step)
            progress.targets_seen = share.step.targets_before + share.step.targets
            progress.tokens_seen += share.tokens * self.accelerator.num_processes
            losses.append(loss)
            counted += share.step.targets
            last = progress.step == steps.count
            if progress.step % report_every == 0 or last:
                numbers = _fetched(torch.stack([torch.stack(losses).sum() / counted, norm]))
                self._pending = _Pending(replace(progress), rate, numbers)
                losses, counted = [], 0
            if waits or last or progress.step in evaluate_after:
                self._report(watch)
            if progress.step in evaluate_after:
                watch.stop()
                self._evaluate()
                watch.start()
            old = time.monotonic() - last_checkpoint >= self.config.checkpoint_seconds
            stop, save = self._agree(should_stop(), old)
            if not last and (stop or save):
                self._report(watch)
                watch.stop()
                self._require_finite(loss.item(), norm.item(), progress.step)
                self.checkpoint()
                last_checkpoint, self._wishes = time.monotonic(), None
                if stop:
                    return False
                watch.start()
        watch.stop()
        return True

    def _agree(self, *wishes: bool) -> Sequence[bool]:
        """Which wishes any process has, the same answer in all of them: they must stop and save at the same step.

        With several processes the answer is one step old: the exchange runs beside the next step, nobody waits for it.
        """
        if self.accelerator.num_processes == 1:
            return wishes
        before, device = self._wishes, self.accelerator.device
        own = torch.tensor(wishes, dtype=torch.int32, pin_memory=device.type == "cuda").to(device, non_blocking=True)
        self._wishes = _fetched(self.accelerator.reduce(own, "sum"))
        return [False] * len(wishes) if before is None else [count > 0 for count in before()]

    def _step(self, share: MicroBatches) -> tuple[Tensor, Tensor, float]:
        """One optimizer step: summed loss over the step's targets of all processes, gradient norm, learning rate."""
        rate = learning_rate(self.config, share.step.targets_before, self.loader.steps.targets)
        total = self.runner.gradients(share)
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, "sum")
            if isinstance(self.runner.optimizer, FlatAdamW):  # else the model is sharded
                self.runner.optimizer.add_up()
        norm = self.runner.update(rate)
        return total, norm, rate

    def _report(self, watch: Stopwatch) -> None:
        """Emit the pending report, once its step is over."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        (loss, norm), p = pending.numbers(), pending.progress
        self._require_finite(loss, norm, p.step)
        seconds = p.train_seconds = watch.read()
        done = p.targets_seen / self.loader.steps.targets
        p.history.append(_row(p, loss=loss, learning_rate=pending.learning_rate))
        self.emit(
            Stepped(
                p.step, p.targets_seen, loss, pending.learning_rate, gradient_norm=norm,
                targets_per_second=p.targets_seen / seconds, tokens_per_second=p.tokens_seen / seconds,
                train_seconds=seconds, seconds_left=seconds * (1 - done) / done,
                peak_memory_gib=peak_memory_gib(self.accelerator.device),
            )
        )  # fmt: skip

    def _require_finite(self, loss: float, norm: float, step: int) -> None:
        """Raise CheckFailed, in all processes alike, for weights that are numbers no more."""
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise CheckFailed(
            f"training diverged: by step {step} of {self.loader.steps.count} the loss is {loss:.4g} and the norm of the"
            f" gradients {norm:.4g}, and no model is published; lower training.learning_rate, now"
            f" {self.config.learning_rate:g}, or lengthen training.warmup_share, now {self.config.warmup_share:g}"
        )

    def _evaluate(self) -> None:
        self.model.eval()
        with nullcontext() if self.average is None else self.average.applied():
            metrics = self.evaluate()
        self.model.train()
        self.progress.history.append(_row(self.progress, **{f"val_{name}": value for name, value in metrics.items()}))
        self.emit(Evaluated(self.progress.targets_seen, self.progress.train_seconds, metrics))


def _fetched(numbers: Tensor) -> Callable[[], list[float]]:
    """Copy numbers from a device to the CPU without waiting; the function that is returned waits for them."""
    if numbers.device.type != "cuda":
        return numbers.tolist
    here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def wait() -> list[float]:
        there.synchronize()
        return here.tolist()

    return wait


def _row(progress: Progress, **values: float) -> dict[str, float]:
    seconds = round(progress.train_seconds, 3)
    return {"targets_seen": progress.targets_seen, "train_seconds": seconds, "step": progress.step, **values}
