"""Steps to batches, ahead of the model: a thread assembles the next steps while the device works on this one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dti_pipeline.modeling.network.batch import Batch, PinnedBuffer
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows, split
from dti_pipeline.training.steps import Step, Steps

#: Steps assembled ahead.
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
    weights are shared out, every pass needs all processes. A step is as few passes as ``tokens_per_batch`` allows, of
    equal size. On a GPU every pass is filled up to it with rows of padding, so that a compiled model is compiled once.
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
    def size(self) -> int:
        """Rows of a pass, at most."""
        most = -(-self.steps.most_rows // self.world)
        passes = -(-most // self.rows.height(self.tokens_per_batch))
        return -(-most // passes)

    @property
    def height(self) -> int:
        """Rows that every pass is filled up to; 0 where nothing is compiled."""
        return self.size if self.device.type == "cuda" else 0

    @cached_property
    def _sums(self) -> int:
        """Targets that every row is filled up to; 0 where they are as many as they are."""
        return int(self.rows.targets().max()) if self.filled else 0

    def work(self, number: int) -> Work:
        """What this process does in step ``number``."""
        return self._assemble(self.steps[number])

    def _assemble(self, step: Step) -> Work:
        mine = split(step.rows[self.rank :: self.world], self.size)
        most = len(split(step.rows[:: self.world], self.size))
        passes, tokens = [], 0
        for index in range(most):
            rows = mine[index] if index < len(mine) else step.rows[:1]
            buffer = None
            if self.filled and self.device.type == "cuda":
                buffer = PinnedBuffer.of(self.height, self.rows.row_length, self._sums)
            layout = self.rows.assemble(rows, self.height, buffer.layout if buffer else None)
            batch = Batch.of(layout, self.rows.store.label, self._sums, buffer)
            if index < len(mine):
                tokens += int(np.count_nonzero(layout.kind != Kind.PAD))
            else:
                batch = batch.without_weight()
            if self.device.type == "cuda" and batch.memory is None:
                batch = batch.pin()
            passes.append(batch)
        return Work(step, passes, tokens)

    def start(self, first: int) -> Iterator[Work]:
        """Steps ``first``, ``first + 1``, .. to the last. On the CPU they are made as they are asked for."""
        if self.device.type == "cuda":
            yield from self._ahead(first)
        else:
            yield from (self.work(number) for number in range(first, self.steps.count))

    def _ahead(self, first: int) -> Iterator[Work]:
        """The same, in the same order, while :data:`AHEAD` more are assembled. By one thread, which is fast enough (a
        step of the study's model for MovieLens-1M on an H200: 2.5 ms beside it, and with everything assembled before);
        several would wait for the interpreter's lock, which what is around the assembly takes."""
        pool, waiting = ThreadPoolExecutor(1, "loader"), deque[Future[Work]]()
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
