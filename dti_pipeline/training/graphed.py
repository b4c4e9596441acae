"""The step of a small model as CUDA graphs, one of a micro-batch and one of the update.

A small model is launch-bound; a CUDA graph records the launches once and replays them in one call. Recorded kernels
have fixed addresses and shapes. So the loader pads all micro-batches to constant shapes; every replay of a micro-batch
adds to the optimizer's flat gradients, which the update sets to zero; the number of the step's targets and the learning
rate are read from the device. Nothing that is recorded may wait for the device: CUDA refuses that with an error. Random
numbers are new at each replay.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.training.flat import FlatAdamW
from dti_pipeline.training.loader import MicroBatches
from dti_pipeline.training.optimizer import allocate_moments
from dti_pipeline.training.runner import EagerRunner

log = logging.getLogger(__name__)
#: Runs before a recording: they compile, and load libraries that are loaded when first used.
WARM_UP_RUNS = 3
#: Recordings of one training. Sizes of [SUM] rows may grow a few times, each of which is one; more is a mistake.
MOST_RECORDINGS = 64


class _Recording(NamedTuple):
    key: object  # see GraphedRunner._key
    memory: Tensor  # of the micro-batch that the kernels read
    graph: torch.cuda.CUDAGraph
    loss: Tensor  # which each replay writes anew


class GraphedRunner:
    """Replays the steps of ``eager``, a runner of a whole ``model`` on a GPU.

    One recording of a micro-batch is kept. A batch of other shapes, or another mode of the model, makes a new one.
    Memory: a micro-batch's activations, for as long as this lives.
    """

    pads_targets = True

    def __init__(self, model: CTRModel, eager: EagerRunner) -> None:
        assert isinstance(eager.optimizer, FlatAdamW)
        self._model, self._eager, self.optimizer = model, eager, eager.optimizer
        self._update = GraphedUpdate(eager.optimizer, eager.update)
        self._device = next(model.parameters()).device
        self._stream = torch.cuda.Stream(self._device)
        self._step_targets = torch.ones((), device=self._device)
        self._recording: _Recording | None = None
        self._recordings = 0

    def update(self, rate: float) -> Tensor:
        return self._update(rate)

    def try_out(self, share: MicroBatches) -> None:
        self.gradients(share)
        self._update.record()

    def gradients(self, share: MicroBatches) -> Tensor:
        self._step_targets.fill_(share.step.targets)
        first, *others = share.batches
        total = self._replay(first).clone()
        for batch in others:
            total += self._replay(batch)
        return total

    def _replay(self, batch: Batch) -> Tensor:
        """Add the gradients of a micro-batch in pinned memory; its summed loss, valid until the next replay."""
        if self._recording is None or self._recording.key != self._key(batch):
            self._record(batch)
        assert self._recording is not None
        assert batch.memory is not None
        self._recording.memory.copy_(batch.memory, non_blocking=True)
        self._recording.graph.replay()
        return self._recording.loss

    def _key(self, batch: Batch) -> object:
        """Everything that decides which kernels a micro-batch is."""
        attention, shapes = self._model.attention, tuple(x.shape for x in batch.tensors())
        sums_apart = attention.sums_have_own_rule or self._model.plan.last_layer_at_sums.on
        sizes = attention.sizes(batch, self._model.paradigm) if sums_apart else None
        return self._model.training, shapes, sizes, attention.late(batch)

    def _record(self, batch: Batch) -> None:
        """Record a micro-batch of these shapes. Random state and gradients are then as before."""
        if self._recordings == MOST_RECORDINGS:
            raise RuntimeError(f"micro-batches have had {MOST_RECORDINGS} different shapes: they are not padded to one")
        self._recordings += 1
        torch.cuda.synchronize(self._device)  # the last recording may still be at work
        self._recording = None
        gc.collect()  # a tensor or graph that is dropped in the middle of a recording may end it
        key, batch = self._key(batch), batch.to(self._device)
        with torch.random.fork_rng([self._device]), _undone(self.optimizer.gradients()):
            # On the stream of the recording: autograd remembers a parameter with its stream.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            try:
                with torch.cuda.stream(self._stream):
                    for _ in range(WARM_UP_RUNS):
                        self._add_gradients(batch)
            finally:  # gradients are put back after all that was begun
                torch.cuda.current_stream(self._device).wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # The loader's thread goes on allocating pinned memory: only this thread may not.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                loss = self._add_gradients(batch)
        log.info("recorded a micro-batch of %s as a CUDA graph", tuple(batch.token.shape))
        assert batch.memory is not None
        self._recording = _Recording(key, batch.memory, graph, loss)

    def _add_gradients(self, batch: Batch) -> Tensor:
        """As the eager form does; but all gradients are added in one launch, where autograd would launch a kernel for
        each."""
        self.optimizer.detach()
        loss = self._eager.add_gradients(batch, self._step_targets)
        self.optimizer.add_detached()
        self.optimizer.attach()
        return loss


class GraphedUpdate:
    """Clipping and the step of ``optimizer`` as a CUDA graph of ``update``, a function of the learning rate that gives
    the norm of the gradients, and drops them where they are."""

    def __init__(self, optimizer: torch.optim.AdamW, update: Callable[[Tensor], Tensor]) -> None:
        self._optimizer, self._update = optimizer, update
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._rate = torch.zeros((), device=self._parameters[0].device)
        self._recorded: tuple[torch.cuda.CUDAGraph, Tensor] | None = None  # where it writes the norm

    def __call__(self, rate: float) -> Tensor:
        """The norm; valid until the next update."""
        graph, norm = self.record()
        self._rate.fill_(rate)
        graph.replay()
        return norm

    @torch.no_grad()  # all of it: code that was compiled with gradients would be compiled anew without
    def record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph, recorded unless it is, and where it writes the norm. Nothing that updates change is changed."""
        if self._recorded is None:
            gc.collect()  # as for a micro-batch
            graph = torch.cuda.CUDAGraph()
            allocate_moments(self._optimizer)
            with self._options(lr=self._rate, fused=False, foreach=True, capturable=True):
                with _undone(self._tensors()):
                    for _ in range(WARM_UP_RUNS):
                        self._update(self._rate)
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    norm = self._update(self._rate)
            self._recorded = graph, norm
        return self._recorded

    def _tensors(self) -> list[Tensor]:
        """Everything that an update changes."""
        found: list[Tensor] = []
        for parameter in self._parameters:
            found += [parameter, parameter.grad, *self._optimizer.state[parameter].values()]
        return found

    @contextmanager
    def _options(self, **options: Any) -> Iterator[None]:
        """Options of the optimizer for a while: the same numbers, but for rounding."""
        groups = self._optimizer.param_groups
        before = [{name: group[name] for name in options} for group in groups]
        for group in groups:
            group.update(options)
        try:
            yield
        finally:
            for group, old in zip(groups, before, strict=True):
                group.update(old)


@contextmanager
def _undone(tensors: list[Tensor]) -> Iterator[None]:
    """Put the tensors back as they are, however it ends. Memory: a copy of them."""
    before = [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        torch._foreach_copy_(tensors, before)
