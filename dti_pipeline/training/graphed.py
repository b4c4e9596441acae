"""The step of a small model as CUDA graphs, one of a micro-batch and one of the update.

A small model is launch-bound; a CUDA graph records the launches once and replays them in one call. Recorded kernels
have fixed addresses and shapes. So the loader pads all micro-batches to constant shapes; every replay writes its
gradients over the last one's, and a step of several adds them up; the number of the step's targets and the learning
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
from torch import Tensor, nn
from torch.optim import Optimizer

from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.training.loader import MicroBatches
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
    """Replays the steps of ``eager``, a runner of ``model`` in a single process on a GPU.

    One recording of a micro-batch is kept. A batch of other shapes, or another mode of the model, makes a new one.
    Memory: a micro-batch's activations, for as long as this lives.
    """

    pads_targets = True

    def __init__(self, model: CTRModel, eager: EagerRunner) -> None:
        self._model, self._eager = model, eager
        self._update = GraphedUpdate(eager.optimizer, eager.apply)
        self._device = next(model.parameters()).device
        self._stream = torch.cuda.Stream(self._device)
        self._step_targets = torch.ones((), device=self._device)
        self._made: dict[nn.Parameter, Tensor] = {}  # gradients, which each replay writes anew
        self._sums: dict[nn.Parameter, Tensor] = {}  # of a step of several micro-batches
        self._recording: _Recording | None = None
        self._recordings = 0

    def update(self, rate: float) -> Tensor:
        norm = self._update(rate)
        self._eager.optimizer.zero_grad(set_to_none=True)
        return norm

    def try_out(self, share: MicroBatches) -> None:
        self.gradients(share)
        self._update.record()

    def gradients(self, share: MicroBatches) -> Tensor:
        self._step_targets.fill_(share.step.targets)
        first, *others = share.batches
        total = self._replay(first).clone()
        if others:
            self._add_up(first=True)
        for batch in others:
            total += self._replay(batch)
            self._add_up(first=False)
        for parameter, gradient in (self._sums if others else self._made).items():
            parameter.grad = gradient
        return total

    def _replay(self, batch: Batch) -> Tensor:
        """Make the gradients of a micro-batch in pinned memory; its summed loss. Valid until the next replay."""
        if self._recording is None or self._recording.key != self._key(batch):
            self._record(batch)
        assert self._recording is not None
        assert batch.memory is not None
        self._recording.memory.copy_(batch.memory, non_blocking=True)
        self._recording.graph.replay()
        return self._recording.loss

    def _add_up(self, first: bool) -> None:
        if self._sums.keys() != self._made.keys():
            self._sums = {parameter: torch.empty_like(gradient) for parameter, gradient in self._made.items()}
        add_or_copy = torch._foreach_copy_ if first else torch._foreach_add_
        add_or_copy(list(self._sums.values()), list(self._made.values()))

    def _key(self, batch: Batch) -> object:
        """Everything that decides which kernels a micro-batch is."""
        attention, shapes = self._model.attention, tuple(x.shape for x in batch.tensors())
        sizes = attention.sizes(batch, self._model.paradigm) if attention.sums_have_own_rule else None
        return self._model.training, shapes, sizes

    def _record(self, batch: Batch) -> None:
        """Record a micro-batch of these shapes. Random state is then as before, and there are no gradients."""
        if self._recordings == MOST_RECORDINGS:
            raise RuntimeError(f"micro-batches have had {MOST_RECORDINGS} different shapes: they are not padded to one")
        self._recordings += 1
        torch.cuda.synchronize(self._device)  # the last recording may still be at work
        self._recording, self._made = None, {}
        gc.collect()  # a tensor or graph that is dropped in the middle of a recording may end it
        key, batch = self._key(batch), batch.to(self._device)
        parameters = list(self._model.trained().values())
        with torch.random.fork_rng([self._device]):
            # On the stream of the recording: autograd remembers a parameter with its stream.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_RUNS):
                    self._eager.add_gradients(batch, self._step_targets)
                _drop_gradients(parameters)
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # The loader's thread goes on allocating pinned memory: only this thread may not.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                loss = self._eager.add_gradients(batch, self._step_targets)
        # Made in the recording, since there were none to add to.
        self._made = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
        _drop_gradients(parameters)
        log.info("recorded a micro-batch of %s as a CUDA graph", tuple(batch.token.shape))
        assert batch.memory is not None
        self._recording = _Recording(key, batch.memory, graph, loss)


def _drop_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


class GraphedUpdate:
    """Clipping and the step of ``optimizer`` as a CUDA graph of ``update``, a function of the learning rate that gives
    the norm of the gradients. One recording for each place where gradients lie: after one micro-batch, or several."""

    def __init__(self, optimizer: Optimizer, update: Callable[[Tensor], Tensor]) -> None:
        self._optimizer, self._update = optimizer, update
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._rate = torch.zeros((), device=self._parameters[0].device)
        self._recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # by the gradients' addresses

    def __call__(self, rate: float) -> Tensor:
        """The norm; valid until the next update."""
        graph, norm = self.record()
        self._rate.fill_(rate)
        graph.replay()
        return norm

    @torch.no_grad()  # all of it: code that was compiled with gradients would be compiled anew without
    def record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The update of gradients where they lie now, recorded unless it is; and where it writes their norm."""
        key = tuple(0 if parameter.grad is None else parameter.grad.data_ptr() for parameter in self._parameters)
        if key not in self._recorded:
            gc.collect()  # as for a micro-batch
            graph = torch.cuda.CUDAGraph()
            with self._options(lr=self._rate, fused=False, foreach=True, capturable=True):
                with self._undone():
                    for _ in range(WARM_UP_RUNS):  # moments are made in the first, so that the second compiles anew
                        self._update(self._rate)
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    norm = self._update(self._rate)
            self._recorded[key] = graph, norm
        return self._recorded[key]

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Put back everything that updates change, however they end. Memory: a copy of weights, gradients, moments."""
        before = {name: tensor.clone() for name, tensor in self._tensors().items()}
        try:
            yield
        finally:
            for name, tensor in self._tensors().items():
                tensor.copy_(before.get(name, torch.zeros(())))  # moments and their count begin with 0

    def _tensors(self) -> dict[tuple[int, str], Tensor]:
        """Everything that an update changes, by the number of a parameter and a name."""
        found = {}
        for number, parameter in enumerate(self._parameters):
            found[number, "weight"] = parameter
            if parameter.grad is not None:
                found[number, "gradient"] = parameter.grad
            found |= {(number, name): moment for name, moment in self._optimizer.state.get(parameter, {}).items()}
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
