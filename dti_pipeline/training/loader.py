"""Steps to batches, ahead of the model: threads assemble the next steps while the device works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dti_pipeline.modeling.batch import Batch
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows
from dti_pipeline.training.steps import Step, Steps

#: Threads that assemble. A step of a small model is done sooner than one thread assembles the next, and NumPy holds the
#: interpreter's lock for little of that work.
WORKERS = 3
#: Steps assembled ahead: as many as there are threads, and some to cover jitter.
AHEAD = 6


@dataclass(frozen=True)
class Work:
    """One process's share of a step."""

    step: Step
    passes: list[Batch]
    tokens: int  # in the passes of rows of its own, padding left out; other passes only take part, and have no weight


@dataclass(frozen=True)
class Loader:
    """The steps of a training from any of them on, for process ``rank`` of ``world``.

    Rows of a step are dealt to the processes in turn, and all take as many passes as the one with most rows: where
    weights are shared out, every pass needs all processes. On a GPU every pass has the same shape, filled up with rows
    of padding, so that a compiled model is compiled once: ``tokens_per_batch``, or the largest step where that is less.
    ``filled``: and every row the same number of targets, so that a pass can be a CUDA graph.
    """

    rows: Rows
    steps: Steps
    tokens_per_batch: int
    device: torch.device
    rank: int = 0
    world: int = 1
    filled: bool = False

    @cached_property
    def height(self) -> int:
        """Rows that every pass is filled up to; 0 where nothing is compiled."""
        if self.device.type != "cuda":
            return 0
        return min(self.rows.height(self.tokens_per_batch), -(-self.steps.most_rows // self.world))

    @cached_property
    def _sums(self) -> int:
        """Targets that every row is filled up to; 0 where they are as many as they are."""
        return int(self.rows.targets().max()) if self.filled else 0

    def work(self, number: int) -> Work:
        """What this process does in step ``number``."""
        return self._assemble(self.steps[number])

    def _assemble(self, step: Step) -> Work:
        mine = self.rows.split(step.rows[self.rank :: self.world], self.tokens_per_batch)
        most = len(self.rows.split(step.rows[:: self.world], self.tokens_per_batch))
        passes, tokens = [], 0
        for index in range(most):
            layout = self.rows.assemble(mine[index] if index < len(mine) else step.rows[:1], self.height)
            batch = Batch.of(layout, self.rows.store.label, self._sums)
            if index < len(mine):
                tokens += int(np.count_nonzero(layout.kind != Kind.PAD))
            else:
                batch = batch.without_weight()
            passes.append(batch.pin() if self.device.type == "cuda" else batch)
        return Work(step, passes, tokens)

    def start(self, first: int) -> Iterator[Work]:
        """Steps ``first``, ``first + 1``, .. to the last. On the CPU they are made as they are asked for."""
        if self.device.type == "cuda":
            yield from self._ahead(first)
        else:
            yield from (self.work(number) for number in range(first, self.steps.count))

    def _ahead(self, first: int) -> Iterator[Work]:
        """The same, in the same order, while :data:`AHEAD` more are assembled."""
        pool, waiting = ThreadPoolExecutor(WORKERS, "loader"), deque[Future[Work]]()
        try:
            for number in range(first, self.steps.count):
                # Drawn here: the steps remember the epoch that they are in.
                waiting.append(pool.submit(self._assemble, self.steps[number]))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
