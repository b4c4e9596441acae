"""The data loader: assembles each step's micro-batches, on a GPU in a thread, ahead of the step that is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from dti_pipeline.modeling.network.ahead import prefetched
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows, split
from dti_pipeline.training.steps import Step, Steps


@dataclass(frozen=True)
class MicroBatches:
    """One process's share of an optimizer step; gradients are added up over its micro-batches."""

    step: Step
    batches: list[Batch]
    tokens: int  # of this process's own rows, without padding


@dataclass(frozen=True)
class Loader:
    """Micro-batches of a training's steps, for process ``rank`` of ``world``.

    The rows of a step are dealt to the processes in turn, in as few micro-batches of equal size as ``tokens_per_batch``
    allows. A process without rows left takes part with a micro-batch of weight 0: a sharded model needs all processes.

    On a GPU every micro-batch is padded to the same number of rows, so that a compiled model is compiled once.
    ``pad_targets`` pads every row to the same number of targets as well, for the constant shapes of a CUDA graph and of
    compiled layers that look at [SUM] rows.
    """

    rows: Rows
    steps: Steps
    tokens_per_batch: int
    device: torch.device
    rank: int = 0
    world: int = 1
    pad_targets: bool = False

    @cached_property
    def rows_per_batch(self) -> int:
        """Rows of a micro-batch, at most."""
        most = -(-self.steps.most_rows // self.world)
        batches = -(-most // self.rows.height(self.tokens_per_batch))
        return -(-most // batches)

    @cached_property
    def padded_targets(self) -> int:
        """Targets that every row is padded to; 0 without ``pad_targets``."""
        return self.rows.most_targets if self.pad_targets else 0

    def examples(self, tokens: int) -> Iterator[Batch]:
        """Micro-batches of rows from all over the plan, about ``tokens`` tokens, in the CPU's memory and of the shapes
        that steps on a GPU have."""
        height = self.rows_per_batch
        count = min(len(self.rows), max(height, tokens // self.rows.row_length))
        for part in split(np.linspace(0, len(self.rows) - 1, count).round().astype(np.int64), height):
            yield Batch.of(self.rows.assemble(part, height), self.rows.store.label, self.padded_targets)

    def halved(self) -> Loader | None:
        """The same steps in micro-batches of half as many rows; None where they have one row each."""
        if self.rows_per_batch == 1:
            return None
        return replace(self, tokens_per_batch=self.rows_per_batch // 2 * self.rows.row_length)

    def micro_batches(self, number: int) -> MicroBatches:
        """This process's share of step ``number``."""
        return self.assemble(self.steps[number])

    def assemble(self, step: Step) -> MicroBatches:
        """This process's share of ``step``; on a GPU in pinned memory."""
        own = split(step.rows[self.rank :: self.world], self.rows_per_batch)
        most = len(split(step.rows[:: self.world], self.rows_per_batch))
        cuda = self.device.type == "cuda"
        height = self.rows_per_batch if cuda else 0  # 0: nothing is padded
        batches, tokens = [], 0
        for index in range(most):
            rows = own[index] if index < len(own) else step.rows[:1]
            layout = self.rows.assemble(rows, height)
            batch = Batch.of(layout, self.rows.store.label, self.padded_targets)
            if index < len(own):
                tokens += int(np.count_nonzero(layout.kind != Kind.PAD))
            else:
                batch = batch.without_weight()
            batches.append(batch.pin() if cuda else batch)
        return MicroBatches(step, batches, tokens)

    def start(self, first: int) -> Iterator[MicroBatches]:
        """Step ``first`` and all after it, in order; on a CPU each is assembled when it is asked for."""
        steps = (self.steps[number] for number in range(first, self.steps.count))
        return prefetched(steps, self.assemble) if self.device.type == "cuda" else map(self.assemble, steps)
