"""Steps to batches, ahead of the model: a thread assembles the next steps while the device works on this one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from dti_pipeline.modeling.batch import Batch
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows
from dti_pipeline.training.steps import Step, Steps

#: Steps assembled ahead. Assembly is faster than any step it feeds, so this only has to cover its jitter.
AHEAD = 4


@dataclass(frozen=True)
class Work:
    """One process's share of a step."""

    step: Step
    passes: list[Batch]
    tokens: int  # in the passes that count, padding left out
    counted: int  # passes of rows of its own, the first ones; the others are computed to take part, for nothing


@dataclass(frozen=True)
class Loader:
    """The steps of a training from any of them on, for process ``rank`` of ``world``.

    Rows of a step are dealt to the processes in turn, and all take as many passes as the one with most rows: where
    weights are shared out, every pass needs all processes. On a GPU every pass has the same shape, filled up with rows
    of padding, so that a compiled model is compiled once: ``tokens_per_batch``, or the largest step where that is less.
    """

    rows: Rows
    steps: Steps
    tokens_per_batch: int
    device: torch.device
    rank: int = 0
    world: int = 1

    @cached_property
    def height(self) -> int:
        """Rows that every pass is filled up to; 0 where nothing is compiled."""
        if self.device.type != "cuda":
            return 0
        return min(self.rows.height(self.tokens_per_batch), -(-self.steps.most_rows // self.world))

    def work(self, number: int) -> Work:
        """What this process does in step ``number``."""
        step = self.steps[number]
        mine = self.rows.split(step.rows[self.rank :: self.world], self.tokens_per_batch)
        most = len(self.rows.split(step.rows[:: self.world], self.tokens_per_batch))
        passes, tokens = [], 0
        for index in range(most):
            layout = self.rows.assemble(mine[index] if index < len(mine) else step.rows[:1], self.height)
            if index < len(mine):
                tokens += int((layout.kind != Kind.PAD).sum())
            batch = Batch.of(layout, self.rows.store.label)
            passes.append(batch.pin() if self.device.type == "cuda" else batch)
        return Work(step, passes, tokens, len(mine))

    def start(self, first: int) -> Iterator[Work]:
        """Steps ``first``, ``first + 1``, .. to the last. On the CPU they are made as they are asked for."""
        if self.device.type != "cuda":
            yield from (self.work(number) for number in range(first, self.steps.count))
            return
        ready: queue.Queue[Work | BaseException | None] = queue.Queue(AHEAD)
        stop = threading.Event()

        def assemble() -> None:
            try:
                for number in range(first, self.steps.count):
                    _put(ready, self.work(number), stop)
                    if stop.is_set():
                        return
                _put(ready, None, stop)
            except BaseException as error:  # it belongs to whoever waits for the next step
                _put(ready, error, stop)

        thread = threading.Thread(target=assemble, name="loader", daemon=True)
        thread.start()
        try:
            while (work := ready.get()) is not None:
                if isinstance(work, BaseException):
                    raise work
                yield work
        finally:
            stop.set()
            thread.join()


def _put(
    ready: queue.Queue[Work | BaseException | None], item: Work | BaseException | None, stop: threading.Event
) -> None:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
            return
        except queue.Full:
            continue
