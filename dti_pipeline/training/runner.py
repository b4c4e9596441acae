"""The arithmetic of an optimizer step: the interface that the training loop calls, and its eager form."""

from __future__ import annotations

from collections.abc import Callable
from inspect import unwrap
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.training.loader import MicroBatches
from dti_pipeline.training.optimizer import gradients_of


class StepRunner(Protocol):
    """Computes optimizer steps. Every form gives the same numbers, but for rounding."""

    @property
    def pads_targets(self) -> bool:
        """Whether micro-batches must have constant shapes (``Loader.pad_targets``)."""

    @property
    def optimizer(self) -> Optimizer:
        """Takes the steps."""

    def gradients(self, share: MicroBatches) -> Tensor:
        """Make this process's share of the gradients of the mean loss over the step's targets; the summed loss of its
        own. Processes add their shares up before the update; those of a sharded model do so here."""

    def update(self, rate: float) -> Tensor:
        """Clip the gradients, take the optimizer's step at this learning rate, and drop them; their norm before
        clipping, to be read before the next update."""

    def try_out(self, share: MicroBatches) -> None:
        """Compile, capture and allocate everything that a step needs. Weights and optimizer are unchanged afterwards;
        gradients and random generators are not, and no process waits for another unless weights are sharded."""


class EagerRunner:
    """Launches every kernel itself. ``compiled`` compiles what is around the model, as a CUDA graph wants it."""

    pads_targets = False

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, accelerator: Accelerator, max_gradient_norm: float,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.accelerator = model, optimizer, accelerator
        self._averaged_over = accelerator.num_processes if isinstance(model, FSDPModule) else 1
        self._objective, self._clipped_step = objective, clipped_step(optimizer, max_gradient_norm)
        if compiled:
            # torch's fused optimizer cuts small tensors into too few pieces for a GPU. Compiling takes seconds, as
            # flat tensors are few.
            self._objective = torch.compile(objective, dynamic=False)
            self._clipped_step = torch.compile(self._clipped_step, dynamic=False)

    def update(self, rate: float | Tensor) -> Tensor:
        norm = self.apply(rate)
        self.optimizer.zero_grad()
        return norm

    def try_out(self, share: MicroBatches) -> None:
        self.gradients(share)

    def gradients(self, share: MicroBatches) -> Tensor:
        total = torch.zeros((), device=self.accelerator.device)
        for index, batch in enumerate(share.batches):
            if isinstance(self.model, FSDPModule):  # it would otherwise exchange gradients in each backward pass
                self.model.set_requires_gradient_sync(index == len(share.batches) - 1)
            total += self.add_gradients(batch.to(self.accelerator.device), share.step.targets)
        return total

    def add_gradients(self, batch: Batch, step_targets: int | Tensor) -> Tensor:
        """Add a micro-batch's share to the gradients; its summed loss."""
        with self.accelerator.autocast():
            logits = self.model(batch)
            part, loss = self._objective(logits, batch.label, batch.weight, self._averaged_over, step_targets)
        # Outside autocast, which would round tensors that the forward pass kept in fp32.
        self.accelerator.backward(part)
        return loss.detach()

    @torch.no_grad()
    def apply(self, rate: float | Tensor) -> Tensor:
        """Clip the gradients and take the optimizer's step; their norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = self._clipped_step(gradients_of(self.optimizer))
        return (norm.full_tensor() if isinstance(norm, DTensor) else norm).float()


def objective(
    logits: Tensor, label: Tensor, weight: Tensor, averaged_over: int, step_targets: int | Tensor
) -> tuple[Tensor, Tensor]:
    """The share of a micro-batch of T targets, all tensors (T,), in the mean loss of a step of ``step_targets``;
    and its summed loss. Processes add their gradients up, or average them over ``averaged_over``, as FSDP does."""
    loss = binary_cross_entropy_with_logits(logits, label, weight, reduction="sum")
    return loss * averaged_over / step_targets, loss


def clipped_step(optimizer: Optimizer, maximum: float) -> Callable[[list[Tensor]], Tensor]:
    """A function of all gradients that gives their norm: it scales them down to a norm of ``maximum``, where they have
    more, and takes a step of ``optimizer``. To be called under ``torch.no_grad``."""
    take_step = unwrap(type(optimizer).step)  # torch's compiler would cut the function in two at its wrappers

    def step(gradients: list[Tensor]) -> Tensor:
        norm = get_total_norm(gradients, foreach=False)
        torch._foreach_mul_(gradients, (maximum / (norm + 1e-6)).clamp(max=1.0))
        take_step(optimizer)
        return norm

    return step
