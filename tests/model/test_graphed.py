"""Training as a CUDA graph is the training without: the update, and, on a GPU, gradients, random numbers and whole
trainings."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dti_pipeline.config import TrainingConfig
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paradigms import names
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.fallback import choose
from dti_pipeline.training.forms import forms_of
from dti_pipeline.training.graphed import WARM_UP_RUNS, GraphedRunner, GraphedUpdate
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.optimizer import allocate_moments, gradients_of, optimizer_for
from dti_pipeline.training.progress import FellBack
from dti_pipeline.training.runner import EagerRunner, clipped_step
from dti_pipeline.training.steps import Steps
from tests.model.conftest import RULES, Log, k_of, small_model
from tests.model.test_precision import assert_near

CPU = torch.device("cpu")


# On a GPU


@pytest.fixture(params=["no", "bf16"])
def accelerator(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision=request.param)
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer(accelerator: Accelerator, log: Log, paradigm: str, graph: bool = True, **settings: Any) -> Trainer:
    """Of a small model, with several micro-batches a step; the same weights every time."""
    cuda = accelerator.device
    rows = log.rows(3, k_of(paradigm), 256)
    model = small_model(paradigm, 3, hidden_size=64, **settings).train()
    model.place(model.make_plan(cuda, cuda_graph=graph))
    config = TrainingConfig(tokens_per_batch=256, learning_rate=1e-3)
    optimizer = optimizer_for(model, config)
    loader = Loader(rows, Steps(rows, 120, 2, 0), config.tokens_per_batch, cuda)
    forms = forms_of(model, optimizer, accelerator, config)
    falls: list[FellBack] = []
    chosen = choose(forms, loader, 0, optimizer, accelerator, falls.append)
    assert isinstance(chosen.runner, GraphedRunner) == (graph and not falls)
    return Trainer(
        model=model,
        runner=chosen.runner,
        loader=chosen.loader,
        accelerator=accelerator,
        config=config,
        progress=Progress(),
        emit=lambda event: None,
        evaluate=dict,
        checkpoint=lambda: None,
    )


def outcome(made: Trainer, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Summed loss and gradients of a step, which are then dropped."""
    loss = made.runner.gradients(made.loader.micro_batches(step))
    gradients = {name: p.grad.cpu().clone() for name, p in made.model.named_parameters() if p.grad is not None}
    made.runner.optimizer.zero_grad()
    return loss.cpu(), gradients


@pytest.mark.gpu
@RULES
@pytest.mark.parametrize("paradigm", names())
def test_gradients_of_steps_are_the_same_as_a_graph(
    accelerator: Accelerator, paradigm: str, fixes: dict[str, str]
) -> None:
    log = Log.random(users=60, seed=5, shortest=8)
    plain, graphed = (trainer(accelerator, log, paradigm, graph, **fixes) for graph in (False, True))
    assert isinstance(graphed.runner, GraphedRunner)
    near = 1e-3 if accelerator.mixed_precision == "no" else 3e-2
    for step in (1, 0, 2):
        assert len(graphed.loader.micro_batches(step).batches) > 1
        assert_near(outcome(graphed, step), outcome(plain, step), logits=near, gradients=near)


@pytest.mark.gpu
def test_a_micro_batch_without_weight_adds_nothing_to_a_graph_s_gradients(accelerator: Accelerator) -> None:
    made = trainer(accelerator, Log.random(users=60, seed=5, shortest=8), "dti")
    assert isinstance(made.runner, GraphedRunner)
    share = made.loader.micro_batches(0)
    counted = outcome(made, 0)
    extended = dataclasses.replace(share, batches=[*share.batches, share.batches[0].without_weight().pin()])
    loss = made.runner.gradients(extended)
    found = {name: p.grad.cpu().clone() for name, p in made.model.named_parameters() if p.grad is not None}
    assert_near((loss.cpu(), found), counted, logits=1e-4, gradients=1e-4)


@pytest.mark.gpu
def test_every_replay_draws_new_numbers_and_recording_draws_none(accelerator: Accelerator) -> None:
    log = Log.random(users=60, seed=5, shortest=8)
    small_model("dti", 3, hidden_size=64, dropout=0.3)  # seeds the generators, as the trainer's does
    before = torch.cuda.get_rng_state()
    made = trainer(accelerator, log, "dti", dropout=0.3)
    assert isinstance(made.runner, GraphedRunner)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    first, second = outcome(made, 0)[0], outcome(made, 0)[0]
    assert first != second
    torch.cuda.set_rng_state(before)
    torch.testing.assert_close(outcome(made, 0)[0], first, atol=0, rtol=2e-3)


@pytest.mark.gpu
@RULES
def test_a_training_is_the_same_as_a_graph(accelerator: Accelerator, fixes: dict[str, str]) -> None:
    log = Log.random(users=60, seed=5, shortest=8)
    graphed = trainer(accelerator, log, "dti", **fixes)
    begun = {name: p.detach().cpu().clone() for name, p in graphed.model.named_parameters()}
    assert isinstance(graphed.runner, GraphedRunner)
    assert graphed.run(lambda: False)
    plain = trainer(accelerator, log, "dti", graph=False, **fixes)
    assert plain.run(lambda: False)
    weights = dict(plain.model.named_parameters())
    near = 0.1 if accelerator.mixed_precision == "no" else 0.3  # Adam makes much of the rounding of small gradients
    for name, weight in graphed.model.named_parameters():
        moved = (weights[name].cpu() - begun[name]).norm()
        assert (weight - weights[name]).norm().cpu() <= near * moved + 1e-4, name


@pytest.mark.gpu
def test_a_capture_that_breaks_off_leaves_generators_and_gradients_as_they_were(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA ends a capture in which somebody waits; torch's generator would then stay in it."""
    log = Log.random(users=60, seed=5, shortest=8)
    plain = trainer(accelerator, log, "dti", graph=False, dropout=0.3)
    before, forward = torch.cuda.get_rng_state(), CTRModel.forward

    def waiting(self: CTRModel, *arguments: Any) -> Any:
        logits = forward(self, *arguments)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return logits

    expected = outcome(plain, 0), torch.cuda.get_rng_state()
    monkeypatch.setattr(CTRModel, "forward", waiting)
    fallen = trainer(accelerator, log, "dti", dropout=0.3)
    assert isinstance(fallen.runner, EagerRunner)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    near = 1e-3 if accelerator.mixed_precision == "no" else 5e-3  # each form of the layers rounds in its own places
    assert_near(outcome(fallen, 0), expected[0], logits=near, gradients=near)
    assert torch.equal(torch.cuda.get_rng_state(), expected[1])


#: How a graph has the optimizer take its step.
OPTIONS = {"fused": False, "foreach": True, "capturable": True}


def options_of(optimizer: torch.optim.Optimizer) -> list[tuple[Any, ...]]:
    return [tuple(group[option] for option in OPTIONS) for group in optimizer.param_groups]


def test_an_update_is_recorded_once_and_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """With graphs that only say what is done with them."""
    done: list[Any] = []
    rates: list[torch.Tensor] = []
    held: list[list[Any]] = []

    class Graph:
        def replay(self) -> None:
            done.append(("replayed", round(float(rates[-1]), 6)))

    @contextmanager
    def graph(_: Graph, **options: Any) -> Iterator[None]:
        held.append(everything())
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    optimizer = optimizer_for(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)), TrainingConfig())
    flats = [flat.whole for flat in optimizer.flats]

    def everything() -> list[Any]:
        return [x.tolist() for p in flats for x in (p, p.grad, *optimizer.state[p].values())]

    def update(rate: torch.Tensor) -> torch.Tensor:
        rates.append(rate)
        assert rate is rates[0], "recorded kernels read the rate where they found it"
        done.append(options_of(optimizer))
        for flat in flats:
            for tensor in (flat.data, flat.grad, *optimizer.state[flat].values()):
                tensor.add_(1)
        return torch.zeros(())

    for flat in flats:
        flat.grad.fill_(2.0)
    usual = options_of(optimizer)
    updates = GraphedUpdate(optimizer, update)
    allocate_moments(optimizer)
    begun = everything()
    for rate in (0.1, 0.2, 0.3):
        updates(rate)
        assert options_of(optimizer) == usual
    assert held == [begun], "the recording itself is the one update that these graphs let change anything"
    taken = [[tuple(OPTIONS.values())] * 2] * (WARM_UP_RUNS + 1)
    assert done == [*taken, ("replayed", 0.1), ("replayed", 0.2), ("replayed", 0.3)]


@pytest.mark.parametrize("new", [True, False], ids=["new", "continued"])
def test_an_update_that_cannot_be_recorded_leaves_everything_as_it_was(
    new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where compiling it raises, at the second run of those before a recording."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    if not new:
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()
    model(torch.randn(2, 4)).square().sum().backward()
    allocate_moments(optimizer)
    runs = 0

    def update(rate: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise AssertionError("reorder_loops_by_dep_pair")
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(0.5)
            parameter.data.sub_(1.0)
            for moment in optimizer.state[parameter].values():
                moment.add_(1.0)
        return torch.zeros(())

    def everything() -> list[torch.Tensor]:
        held = [x for p in model.parameters() for x in (p, p.grad, *optimizer.state[p].values())]
        return [x.detach().clone() for x in held if x is not None]

    before, options = everything(), options_of(optimizer)
    with pytest.raises(AssertionError, match="reorder_loops"):
        GraphedUpdate(optimizer, update).record()
    assert runs == 2
    assert len(before) == 10
    assert all(map(torch.equal, everything(), before))
    assert options_of(optimizer) == options
    assert optimizer.param_groups[0]["lr"] == 0.25


def layers(tensors: int = 6, width: int = 5) -> torch.nn.Sequential:
    """A model of so many small tensors, with vectors among them."""
    torch.manual_seed(1)
    norms = [torch.nn.LayerNorm(width) for _ in range(tensors // 4)]
    return torch.nn.Sequential(*(part for norm in norms for part in (torch.nn.Linear(width, width), norm)))


def set_gradients(model: torch.nn.Module, seed: int, size: float) -> None:
    """Random gradients, the same for models of the same layers on any device; those that are there are overwritten."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        gradient = size * torch.randn(parameter.shape).to(parameter.device)
        parameter.grad = gradient if parameter.grad is None else parameter.grad.copy_(gradient)


def plain_adamw(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """torch's own, of the model's tensors one by one."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), eps=config.adam_epsilon)


@torch.no_grad()
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("tensors", [8, 400])
def test_clipping_and_a_step_are_one_graph_of_a_few_tensors(compiled: bool, tensors: int) -> None:
    torch._dynamo.reset()
    inputs: list[int] = []

    def backend(graph: torch.fx.GraphModule, arguments: Any) -> Any:
        inputs.append(len(arguments))
        return graph.forward

    config = TrainingConfig(weight_decay=0.1, learning_rate=0.1)
    flat, plain = layers(tensors), layers(tensors)
    optimizer, expected = optimizer_for(flat, config), plain_adamw(plain, config)
    step = clipped_step(optimizer, 1.0)
    if compiled:
        step = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
        for group in optimizer.param_groups:
            group.update(fused=False, foreach=True)
    assert len(list(flat.parameters())) == tensors
    for size in (0.01, 1.0, 100.0):
        for model in (flat, plain):
            set_gradients(model, 2, size)
        norm = step(gradients_of(optimizer))
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0))
        expected.step()
        torch.testing.assert_close(list(flat.parameters()), list(plain.parameters()))
    assert all(number <= 12 for number in inputs), "the graph grows with the number of tensors"
    assert bool(inputs) == compiled
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("tensors", [8, 420])
@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
def test_an_update_is_the_same_as_a_graph(accelerator: Accelerator, resumed: bool, tensors: int) -> None:
    """Compiled, as a training has it, in bounded time: at every rate, 0 first, and gradient, clipped or not; with
    moments that are new or a checkpoint's."""
    cuda, config = accelerator.device, TrainingConfig(weight_decay=0.1)
    torch._dynamo.reset()
    graphed, plain = (layers(tensors).to(cuda) for _ in range(2))
    optimizer, expected = optimizer_for(graphed, config), plain_adamw(plain, config)
    if resumed:
        for model, own in ((graphed, optimizer), (plain, expected)):
            for turn in range(3):  # passes of their own would differ by rounding, which AdamW's first steps magnify
                set_gradients(model, 100 + turn, 1.0)
                own.step()
        optimizer, before = optimizer_for(graphed, config), optimizer
        optimizer.load_state_dict(copy.deepcopy(before.state_dict()))
    update = GraphedUpdate(optimizer, EagerRunner(graphed, optimizer, accelerator, 1.0, compiled=True).update)
    begun = time.monotonic()
    update.record()
    assert time.monotonic() - begun < 60
    for turn in range(8):
        for model in (graphed, plain):
            set_gradients(model, turn, 10.0 ** (turn % 3 - 2))
        rate = 1e-3 * turn
        for group in expected.param_groups:
            group["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        expected.step()
        torch.testing.assert_close(update(rate), norm)
        torch.testing.assert_close(list(graphed.parameters()), list(plain.parameters()), atol=1e-7, rtol=1e-5)
        assert not any(flat.whole.grad.any() for flat in optimizer.flats), "gradients are dropped"
