"""The loop: the same for every paradigm, on accelerate. Loss, schedule and steps count targets, not rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import unwrap
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import get_total_norm

from dti_pipeline.config import TrainingConfig
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.training.average import Average
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.graphed import GraphedPasses, GraphedUpdate
from dti_pipeline.training.loader import Loader, Work
from dti_pipeline.training.optimizer import learning_rate
from dti_pipeline.training.progress import Evaluated, Listener, Stepped
from dti_pipeline.training.stopwatch import Stopwatch, peak_memory_gib

#: Points of the loss curve at most: enough to draw, few enough to store.
REPORTS = 200


@dataclass(frozen=True)
class _Due:
    """What is to be reported of a step, which may not be over yet."""

    progress: Progress  # as it was
    learning_rate: float
    numbers: Callable[[], list[float]]  # mean loss over the targets since the last report, gradient norm


@dataclass
class Trainer:
    """One training in progress. ``evaluate`` scores the validation targets; ``checkpoint`` writes resume state."""

    model: nn.Module  # prepared by accelerate
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    config: TrainingConfig
    loader: Loader
    progress: Progress
    emit: Listener
    evaluate: Callable[[], dict[str, float]]
    checkpoint: Callable[[], None]
    average: Average | None = None  # of the weights: what is evaluated, where there is one
    _asked: Tensor | None = None  # what the processes wished for a step ago
    _due: _Due | None = None  # what is to be reported when the next step is under way
    # Where launching kernels would take longer than the kernels.
    _graphed: GraphedPasses | None = None
    _graphed_update: GraphedUpdate | None = None
    _objective: Callable[..., tuple[Tensor, Tensor]] = field(init=False)
    _take_step: Callable[[list[Tensor], Tensor], None] = field(init=False)

    def __post_init__(self) -> None:
        self._objective = objective
        self._take_step = clipped_step(self.optimizer, self.config.max_gradient_norm)

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Train to the end, or until ``should_stop``; True when all steps are done."""
        progress, steps = self.progress, self.loader.steps
        self._warm_up()
        self.model.train()
        watch = Stopwatch(progress.train_seconds, self.accelerator.device)
        report_every = max(1, steps.count // REPORTS)
        evaluate_after = self._evaluation_steps()
        last_checkpoint = time.monotonic()
        waits = self.accelerator.device.type == "cpu"  # a step is over when its call returns
        losses: list[Tensor] = []
        counted = 0
        watch.start()
        for work in self.loader.start(progress.step):
            loss, norm, rate = self._step(work)
            self._report(watch)  # of the step before, while a GPU is busy with this one
            progress.step += 1
            if self.average is not None:
                self.average.update(progress.step)
            progress.targets_seen = work.step.targets_before + work.step.targets
            progress.tokens_seen += work.tokens * self.accelerator.num_processes
            losses.append(loss)
            counted += work.step.targets
            last = progress.step == steps.count
            if progress.step % report_every == 0 or last:
                numbers = _fetched(torch.stack([torch.stack(losses).sum() / counted, norm]))
                self._due = _Due(replace(progress), rate, numbers)
                losses, counted = [], 0
            if waits or last or progress.step in evaluate_after:
                self._report(watch)
            if progress.step in evaluate_after:
                progress.train_seconds = watch.stop()
                self._evaluate()
                watch.start()
            old = time.monotonic() - last_checkpoint >= self.config.checkpoint_seconds
            stop, save = self._agree(should_stop(), old)
            if not last and (stop or save):
                self._report(watch)
                progress.train_seconds = watch.stop()
                self.checkpoint()
                last_checkpoint, self._asked = time.monotonic(), None
                if stop:
                    return False
                watch.start()
        progress.train_seconds = watch.stop()
        return True

    def _agree(self, *wishes: bool) -> Sequence[bool]:
        """Which wishes some process has, the same answer in all of them: they must stop and save at the same step.

        With several processes the answer is one step old: the exchange runs beside the next step, nobody waits for it.
        """
        if self.accelerator.num_processes == 1:
            return wishes
        asked, device = self._asked, self.accelerator.device
        self._asked = cast(
            Tensor, self.accelerator.reduce(torch.tensor(wishes, dtype=torch.int32, device=device), "sum")
        )
        return [False] * len(wishes) if asked is None else [count > 0 for count in asked.tolist()]

    def _step(self, work: Work) -> tuple[Tensor, Tensor, float]:
        """One optimizer step: summed loss over the step's targets of all processes, gradient norm, learning rate."""
        accelerator = self.accelerator
        rate = learning_rate(self.config, work.step.targets_before, self.loader.steps.targets)
        total = self.gradients(work)
        norm = self.update(rate)
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, "sum")
        return total, norm, rate

    def update(self, rate: float) -> Tensor:
        """Clip the gradients, take the optimizer's step with them, and drop them; their norm before clipping, until the
        next update."""
        norm = (self._graphed_update or self._update)(rate)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def _update(self, rate: float | Tensor) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = get_total_norm(gradients)
        self._take_step(gradients, norm)
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).float()

    @cached_property
    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def gradients(self, work: Work) -> Tensor:
        """Gradients of the mean loss over the step's targets; the summed loss of this process's own."""
        accelerator = self.accelerator
        if self._graphed is not None:
            return self._graphed.gradients(work)
        total = torch.zeros((), device=accelerator.device)
        for index, waiting in enumerate(work.passes):
            batch = waiting.to(accelerator.device)
            with _synchronise(accelerator, self.model, last=index == len(work.passes) - 1):
                total += self._add_gradients(batch, work.step.targets)
        return total

    def _add_gradients(self, batch: Batch, step_targets: int | Tensor) -> Tensor:
        """Add a pass's share to the gradients; its summed loss."""
        accelerator = self.accelerator
        with accelerator.autocast():
            logits = self.model(batch)
            # DDP averages gradients over processes; the loss is the mean over all targets of all of them.
            processes = accelerator.num_processes
            share, loss = self._objective(logits, batch.label, batch.weight, processes, step_targets)
        # Outside autocast, which would round what the forward pass kept in fp32.
        accelerator.backward(share)
        return loss.detach()

    def _warm_up(self) -> None:
        """Compile and capture, with the watch stopped: on a GPU a step's gradients, thrown away, and updates with them
        that are taken back."""
        device = self.accelerator.device
        if device.type != "cuda":
            self.loader.work(self.progress.step % self.loader.steps.count)  # assembly is compiled when first used
            return
        self.model.train()
        with torch.random.fork_rng([device]):
            self._graph()
            self.gradients(self.loader.work(self.progress.step % self.loader.steps.count))
            if self._graphed_update is not None:
                self._graphed_update.record()
        self.optimizer.zero_grad(set_to_none=True)

    def _graph(self) -> None:
        """From here on passes and updates are CUDA graphs, where asked for and nothing but this process takes part."""
        model = self.model
        if isinstance(model, CTRModel) and model.plan.cuda_graph:
            self.loader = replace(self.loader, filled=True)
            self._graphed = GraphedPasses(model, self._add_gradients)
            self._graphed_update = GraphedUpdate(self.optimizer, self._update)
            # Kernels of what is many steps of a few numbers each; torch's fused optimizer leaves half a GPU idle.
            self._objective = torch.compile(objective, dynamic=False)
            self._take_step = torch.compile(self._take_step, dynamic=False)

    def _evaluation_steps(self) -> set[int]:
        """After which steps the validation targets are scored: evenly spread, the last step among them."""
        count = self.config.evaluations
        return {round(self.loader.steps.count * (i + 1) / count) for i in range(count)} if count else set()

    def _report(self, watch: Stopwatch) -> None:
        """Tell what is due, once the step that it is about is over."""
        due, self._due = self._due, None
        if due is None:
            return
        (loss, norm), p = due.numbers(), due.progress
        p.train_seconds = watch.read()
        done = p.targets_seen / self.loader.steps.targets
        event = Stepped(
            step=p.step,
            targets_seen=p.targets_seen,
            loss=loss,
            learning_rate=due.learning_rate,
            gradient_norm=norm,
            targets_per_second=p.targets_seen / p.train_seconds,
            tokens_per_second=p.tokens_seen / p.train_seconds,
            train_seconds=p.train_seconds,
            seconds_left=p.train_seconds * (1 - done) / done,
            peak_memory_gib=peak_memory_gib(self.accelerator.device),
        )
        p.history.append(_row(p, loss=loss, learning_rate=due.learning_rate))
        self._tell(event)

    def _evaluate(self) -> None:
        self.model.eval()
        with nullcontext() if self.average is None else self.average.applied():
            metrics = self.evaluate()
        self.model.train()
        self.progress.history.append(_row(self.progress, **{f"val_{name}": value for name, value in metrics.items()}))
        self._tell(Evaluated(self.progress.targets_seen, self.progress.train_seconds, metrics))

    def _tell(self, event: Stepped | Evaluated) -> None:
        if self.accelerator.is_main_process:
            self.emit(event)


def clipped_step(optimizer: torch.optim.Optimizer, maximum: float) -> Callable[[list[Tensor], Tensor], None]:
    """A function of all gradients and their norm: it scales them down to a norm of ``maximum``, where they have more,
    and takes a step of ``optimizer``. To be called without gradients."""
    # Without what torch has wrapped around it, at which its compiler would cut the function in two.
    take_step = unwrap(type(optimizer).step)

    def step(gradients: list[Tensor], norm: Tensor) -> None:
        torch._foreach_mul_(gradients, (maximum / (norm + 1e-6)).clamp(max=1.0))
        take_step(optimizer)

    return step


def objective(
    logits: Tensor, label: Tensor, weight: Tensor, processes: int, step_targets: int | Tensor
) -> tuple[Tensor, Tensor]:
    """What a pass of T targets, with ``logits``, ``label`` and ``weight`` (T,), adds to the mean loss of a step of
    ``step_targets``, to be averaged over ``processes``; and its summed loss."""
    loss = binary_cross_entropy_with_logits(logits, label, weight, reduction="sum")
    return loss * processes / step_targets, loss


def _fetched(numbers: Tensor) -> Callable[[], list[float]]:
    """Numbers of a device on their way to the CPU, behind what is queued and before what will be: nothing waits for
    them but who asks."""
    if numbers.device.type != "cuda":
        return numbers.tolist
    here = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def wait() -> list[float]:
        there.synchronize()
        return here.tolist()

    return wait


@contextmanager
def _synchronise(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """Exchange gradients between processes once a step, with its last backward pass."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif last:
        yield
    else:
        with accelerator.no_sync(model):
            yield


def _row(progress: Progress, **values: float) -> dict[str, float]:
    return {
        "targets_seen": progress.targets_seen,
        "train_seconds": round(progress.train_seconds, 3),
        "step": progress.step,
        **values,
    }
