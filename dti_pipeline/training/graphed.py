"""A step as CUDA graphs, one of a pass and one of the update: a small model waits for its launches, not for its
arithmetic.

Forward, loss and backward of a model 128 wide are some 200 kernels of a few microseconds each, and a CPU needs ten
times as long to launch them. They are launched once while CUDA records them, and from then on all together: a pass is
the copy of its batch to where the recorded kernels read, and one call. So are clipping and the optimizer's step, which
is compiled as well: torch's own code around its kernels took 2 ms of a step of 4.4 (H100, commit 303d0ab), and its
fused one cuts tensors into too few pieces for a GPU (70 us of 2,300, H200, a93e74d).

What is recorded has fixed addresses and shapes. So the loader fills all batches up to the same shapes; every pass
writes its gradients to where the last one did, and a step of several adds them up; and the number of the step's targets
is read from the device, as is the learning rate. Nothing that is recorded may wait for the device: CUDA refuses that
with an error, as it does all that it cannot record. Random numbers are new at each replay, since torch counts them on
for a graph as for single kernels.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.training.loader import Work

log = logging.getLogger(__name__)
#: Passes taken before one is recorded: they compile, and load what is loaded when first used.
WARM_UP_PASSES = 3
#: Recordings of one training. Sizes of [SUM] rows may grow a few times, each of which is one; more is a mistake.
MOST_RECORDINGS = 64


class GraphedPasses:
    """The passes of ``model``, which ``add_gradients`` takes one by one: it is given a batch on the device and the
    targets of the step, adds to the gradients, and returns the pass's summed loss.

    One recording is kept, of passes as the last one was: another shape, another mode of the model, and it is made anew.
    Memory: a pass's activations, for as long as this lives.
    """

    def __init__(self, model: CTRModel, add_gradients: Callable[[Batch, Tensor], Tensor]) -> None:
        self._model, self._add_gradients = model, add_gradients
        self._device = model.slopes.device
        self._stream = torch.cuda.Stream(self._device)
        self._step_targets = torch.ones((), device=self._device)
        self._made: dict[nn.Parameter, Tensor] = {}  # what the last pass's gradients are written to
        self._sums: dict[nn.Parameter, Tensor] = {}  # of the passes of a step that has several
        self._recorded: object = None  # what was recorded: see _key
        self._recordings = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._input: Batch | None = None
        self._loss: Tensor | None = None

    def gradients(self, work: Work) -> Tensor:
        """Gradients of the mean loss over the step's targets; the summed loss. ``work`` is in page-locked memory."""
        self._step_targets.fill_(work.step.targets)
        first, *others = work.passes
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
        """Make one pass's gradients; its summed loss. Both until the next replay."""
        key = self._key(batch)
        if key != self._recorded:
            self._record(batch)
            self._recorded = key
        assert self._graph is not None
        assert self._loss is not None
        assert self._input is not None
        assert self._input.memory is not None
        assert batch.memory is not None
        self._input.memory.copy_(batch.memory, non_blocking=True)
        self._graph.replay()
        return self._loss

    def _add_up(self, first: bool) -> None:
        if self._sums.keys() != self._made.keys():
            self._sums = {parameter: torch.empty_like(gradient) for parameter, gradient in self._made.items()}
        add_or_copy = torch._foreach_copy_ if first else torch._foreach_add_
        add_or_copy(list(self._sums.values()), list(self._made.values()))

    def _key(self, batch: Batch) -> object:
        """All that decides which kernels a pass is."""
        shapes = tuple(x.shape for x in batch.tensors())
        return (
            self._model.training,
            shapes,
            self._model.attention.sizes(batch, self._model.paradigm)
            if self._model.attention.sums_have_own_rule
            else None,
        )

    def _record(self, batch: Batch) -> None:
        """Record a pass of the shape of ``batch``. Random state is then what it was, and there are no gradients."""
        if self._recordings == MOST_RECORDINGS:
            raise RuntimeError(f"passes have had {MOST_RECORDINGS} different shapes: they are not filled up to one")
        self._recordings += 1
        torch.cuda.synchronize(self._device)  # the last recording may still be at work
        self._graph = self._loss = None
        self._made = {}
        gc.collect()  # what is dropped in the middle of a recording may end it: an earlier training's graph, say
        self._input = batch.to(self._device)
        with torch.random.fork_rng([self._device]):
            # On the stream of the recording: what autograd remembers of a parameter includes its stream.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_PASSES):
                    self._add_gradients(self._input, self._step_targets)
                self._drop_gradients()
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # The loader's thread goes on allocating page-locked memory: only this thread may not.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._loss = self._add_gradients(self._input, self._step_targets)
        parameters = self._model.trained().values()
        # Made in the recording, for want of any to add to: each replay writes them anew.
        self._made = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
        self._drop_gradients()
        self._graph = graph
        log.info("recorded a pass of %s as a CUDA graph", tuple(batch.token.shape))

    def _drop_gradients(self) -> None:
        for parameter in self._model.trained().values():
            parameter.grad = None


class GraphedUpdate:
    """``update``, which takes a learning rate, clips the gradients and takes a step of ``optimizer`` with them, and
    returns their norm before: recorded once for wherever gradients lie, which differs between steps of one pass and of
    several."""

    def __init__(self, optimizer: Optimizer, update: Callable[[Tensor], Tensor]) -> None:
        self._optimizer, self._update = optimizer, update
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._rate = torch.zeros((), device=self._parameters[0].device)
        self._recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # by the gradients' addresses

    def __call__(self, rate: float) -> Tensor:
        """The norm; until the next update."""
        graph, norm = self.record()
        self._rate.fill_(rate)
        graph.replay()
        return norm

    @torch.no_grad()  # all of it: code that was compiled with gradients would be compiled anew without
    def record(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The update of gradients where they lie now, recorded unless it is; and where it writes their norm."""
        key = tuple(0 if parameter.grad is None else parameter.grad.data_ptr() for parameter in self._parameters)
        if key not in self._recorded:
            gc.collect()  # as for a pass
            graph = torch.cuda.CUDAGraph()
            with self._ways(fused=False, foreach=True, capturable=True):
                self._rehearse()
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    norm = self._update(self._rate)
            self._recorded[key] = graph, norm
        return self._recorded[key]

    def _rehearse(self) -> None:
        """Take updates that compile, and put everything back. The optimizer makes its moments in the first, so that the
        second compiles anew."""
        before = {name: tensor.clone() for name, tensor in self._tensors().items()}
        for _ in range(WARM_UP_PASSES):
            self._update(self._rate)
        for name, tensor in self._tensors().items():
            if name in before:
                tensor.copy_(before[name])
            else:
                tensor.zero_()  # as moments and their count begin

    def _tensors(self) -> dict[tuple[int, str], Tensor]:
        """All that an update changes, by the number of a parameter and what it is of it."""
        found = {}
        for number, parameter in enumerate(self._parameters):
            found[number, "weight"] = parameter
            if parameter.grad is not None:
                found[number, "gradient"] = parameter.grad
            found |= {(number, name): moment for name, moment in self._optimizer.state.get(parameter, {}).items()}
        return found

    @contextmanager
    def _ways(self, **ways: bool) -> Iterator[None]:
        """How the optimizer goes about its step: the same numbers, but for rounding."""
        groups = self._optimizer.param_groups
        before = [{name: group[name] for name in ways} for group in groups]
        for group in groups:
            group.update(ways)
        try:
            yield
        finally:
            for group, old in zip(groups, before, strict=True):
                group.update(old)
