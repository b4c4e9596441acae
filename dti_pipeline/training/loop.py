"""The loop: the same for every paradigm, on accelerate. Loss, schedule and steps count targets, not rows."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from dti_pipeline.config import TrainingConfig
from dti_pipeline.modeling.batch import Batch
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.progress import Evaluated, Listener, Stepped
from dti_pipeline.training.steps import Step, Steps

#: Points of the loss curve at most: enough to draw, few enough to store.
REPORTS = 200


class Stopwatch:
    """Seconds of training proper: evaluation, checkpoints and warm-up happen with the watch stopped."""

    def __init__(self, seconds: float, device: torch.device) -> None:
        self.seconds, self._device = seconds, device

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # work that was queued is part of the time
        return time.perf_counter()

    @contextmanager
    def running(self) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self.seconds += self._now() - start


def optimizer_for(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, as norms and biases are scales, not features."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    cuda = any(p.is_cuda for p in trained)
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=(0.9, 0.98), fused=cuda)


def learning_rate(config: TrainingConfig, targets_seen: int, targets_total: int) -> float:
    """Linear warm-up, then cosine to ``final_learning_rate_share`` of the peak; both counted in targets."""
    done = targets_seen / max(targets_total, 1)
    if done < config.warmup_share:
        return config.learning_rate * done / config.warmup_share
    rest = (done - config.warmup_share) / max(1 - config.warmup_share, 1e-9)
    floor = config.final_learning_rate_share
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0))))


@dataclass
class Trainer:
    """One training in progress. ``evaluate`` scores the validation targets; ``checkpoint`` writes resume state."""

    model: nn.Module  # prepared by accelerate
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    config: TrainingConfig
    rows: Rows
    steps: Steps
    progress: Progress
    emit: Listener
    evaluate: Callable[[], dict[str, float]]
    checkpoint: Callable[[], None]

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Train to the end, or until ``should_stop``; True when all steps are done."""
        watch = Stopwatch(self.progress.train_seconds, self.accelerator.device)
        evaluate_at = self._evaluation_steps()
        report_every = max(1, self.steps.count // REPORTS)
        last_checkpoint = time.monotonic()
        losses: list[Tensor] = []
        counted = 0
        self.model.train()
        while self.progress.step < self.steps.count:
            with watch.running():
                step = self.steps[self.progress.step]
                loss, norm, rate, tokens = self._step(step)
            progress = self.progress
            progress.step += 1
            progress.targets_seen = step.targets_before + step.targets
            progress.tokens_seen += tokens
            progress.train_seconds = watch.seconds
            losses.append(loss)
            counted += step.targets
            if progress.step % report_every == 0 or progress.step == self.steps.count:
                mean = float(torch.stack(losses).sum()) / counted
                losses, counted = [], 0
                self._report(mean, float(norm), rate)
            if progress.step in evaluate_at:
                self._evaluate()
            stop = should_stop()
            due = time.monotonic() - last_checkpoint >= self.config.checkpoint_seconds
            if stop or (due and progress.step < self.steps.count):
                self.checkpoint()
                last_checkpoint = time.monotonic()
            if stop:
                return False
        return True

    def _step(self, step: Step) -> tuple[Tensor, Tensor, float, int]:
        """One optimizer step: mean loss over the step's targets, of all processes together."""
        config, accelerator = self.config, self.accelerator
        rate = learning_rate(config, step.targets_before, self.steps.targets)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        mine = step.rows[accelerator.process_index :: accelerator.num_processes]
        # A process without a row of its own still takes part: its loss counts for nothing.
        weight = 1.0 if len(mine) else 0.0
        mine = mine if len(mine) else step.rows[:1]
        total = torch.zeros((), device=accelerator.device)
        tokens = 0
        passes = self.rows.split(mine, config.tokens_per_batch)
        for index, part in enumerate(passes):
            layout = self.rows.assemble(part)
            tokens += int((layout.kind != Kind.PAD).sum())
            batch = Batch.of(layout, self.rows.store.label).to(accelerator.device)
            last = index == len(passes) - 1
            with _synchronise(accelerator, self.model, last), accelerator.autocast():
                logits, text_loss = self.model(batch, config.text_loss_weight > 0)
                loss = weight * binary_cross_entropy_with_logits(logits, batch.label, reduction="sum")
                # Each pass weighs by its targets, so the text loss does not depend on how a step is cut.
                share = weight * len(batch.target)
                objective = loss + config.text_loss_weight * share * text_loss
                # DDP averages gradients over processes; the loss is the mean over all targets of all of them.
                accelerator.backward(objective * accelerator.num_processes / step.targets)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, "sum")
        return total, torch.as_tensor(norm if norm is not None else 0.0), rate, tokens * accelerator.num_processes

    def _evaluation_steps(self) -> set[int]:
        """After which steps the validation targets are scored: evenly spread, the last step among them."""
        count = self.config.evaluations
        return {round(self.steps.count * (i + 1) / count) for i in range(count)} if count else set()

    def _report(self, loss: float, norm: float, rate: float) -> None:
        p = self.progress
        done = p.targets_seen / self.steps.targets
        self._tell(
            Stepped(
                step=p.step,
                targets_seen=p.targets_seen,
                loss=loss,
                learning_rate=rate,
                gradient_norm=norm,
                targets_per_second=p.targets_seen / p.train_seconds,
                tokens_per_second=p.tokens_seen / p.train_seconds,
                train_seconds=p.train_seconds,
                seconds_left=p.train_seconds * (1 - done) / done,
                peak_memory_gib=peak_memory_gib(self.accelerator.device),
            )
        )
        p.history.append(_row(p, loss=loss, learning_rate=rate))

    def _evaluate(self) -> None:
        self.model.eval()
        metrics = self.evaluate()
        self.model.train()
        self._tell(Evaluated(self.progress.targets_seen, self.progress.train_seconds, metrics))
        row = {f"val_{name}": value for name, value in metrics.items()}
        self.progress.history.append(_row(self.progress, **row))

    def _tell(self, event: Stepped | Evaluated) -> None:
        if self.accelerator.is_main_process:
            self.emit(event)


@contextmanager
def _synchronise(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """Exchange gradients between processes once a step, with its last backward pass."""
    if last:
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


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the accelerator's allocator; of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
