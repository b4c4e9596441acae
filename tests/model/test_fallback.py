"""No training ends because an optimisation could not be had: it goes on, and is the training that never tried."""

from __future__ import annotations

import csv
import dataclasses
import logging
import signal
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.execution import Choice
from dti_pipeline.packing.pack import pack
from dti_pipeline.paths import Paths
from dti_pipeline.training.fallback import Form, choose, in_one_line
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.progress import Event, FellBack, Stepped
from dti_pipeline.training.report import TrainReport
from dti_pipeline.training.steps import Steps
from dti_pipeline.training.train import train
from tests.model.conftest import Log

PARADIGM = "dti"
CPU = torch.device("cpu")
INDUCTOR = "torch._inductor.compile_fx.compile_fx"


def home_of(token_home: tuple[Config, Paths], folder: Path, **training: Any) -> tuple[Config, Paths]:
    """A home with shards, and its configuration: with dropout, average and several rows a micro-batch, so that
    everything that depends on random numbers, moments or order would show."""
    AcceleratorState._reset_state()
    config, made = token_home
    settings = {"targets_per_step": 48, "evaluations": 0, "average_decay": 0.9, **training}
    changed = dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, **settings),
        model=dataclasses.replace(config.model, dropout=0.2),
    )
    paths = Paths(folder)
    (paths.home / "data").mkdir(parents=True)
    paths.tokens.symlink_to(made.tokens)
    pack(changed, paths, PARADIGM)
    return changed, paths


@pytest.fixture
def ready(token_home: tuple[Config, Paths], tmp_path: Path) -> Any:
    """A function that makes a home of that name, and its configuration."""
    return lambda name="home", **training: home_of(token_home, tmp_path / name, **training)


@pytest.fixture(scope="module")
def alone(token_home: tuple[Config, Paths], tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home where nothing failed."""
    config, paths = home_of(token_home, tmp_path_factory.mktemp("alone") / "home")
    train(config, paths, PARADIGM)
    return paths


def outcome(paths: Paths) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    """Published tensors, and the history without its clock."""
    folder = paths.model(PARADIGM)
    files = sorted(folder.rglob("*.safetensors"))
    tensors = {f"{file.name}/{name}": t for file in files for name, t in load_file(file).items()}
    with (folder / "history.csv").open(newline="") as handle:
        return tensors, [{k: v for k, v in row.items() if k != "train_seconds"} for row in csv.DictReader(handle)]


def assert_same(one: Paths, other: Paths) -> None:
    (tensors, history), (expected, its_history) = outcome(one), outcome(other)
    assert tensors.keys() == expected.keys()
    assert len(tensors) > 2
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []
    assert history == its_history


def planned(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Have plans on a CPU choose what they would on a GPU."""
    make_plan = CTRModel.make_plan

    def make(self: CTRModel, *arguments: Any, **options: Any) -> Any:
        plan = make_plan(self, *arguments, **options)
        return dataclasses.replace(plan, **{name: Choice(True, "as on a GPU") for name in names})

    monkeypatch.setattr(CTRModel, "make_plan", make)


def broken_compiler(*_: Any, **__: Any) -> Any:
    raise AssertionError("reorder_loops_by_dep_pair\nand many lines more")


def cuda_that_breaks(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """CUDA's streams and graphs on a CPU; recording number ``at`` breaks off at its end, as one does that waits for the
    device."""
    recordings = 0

    @contextmanager
    def graph(_: Any, **options: Any) -> Any:
        nonlocal recordings
        yield
        recordings += 1
        if recordings == at:
            raise RuntimeError("operation not permitted when stream is capturing")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fork_rng = torch.random.fork_rng
    for name, fake in {
        "Stream": lambda device: stream,
        "current_stream": lambda device: stream,
        "stream": lambda given: nullcontext(),
        "synchronize": lambda device: None,
        "CUDAGraph": SimpleNamespace,
        "graph": graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork_rng([]))
    monkeypatch.setattr(INDUCTOR, lambda module, inputs, **_: module.forward)


def memory_for(monkeypatch: pytest.MonkeyPatch, rows: int, times: int = 10**9) -> None:
    """Memory that suffices for so many rows; it is told after a forward pass, which has drawn random numbers."""
    forward, told = CTRModel.forward, 0

    def limited(self: CTRModel, batch: Any, *arguments: Any) -> Any:
        nonlocal told
        logits = forward(self, batch, *arguments)
        if self.training and len(batch.token) > rows and told < times:
            told += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nPlease see")
        return logits

    monkeypatch.setattr(CTRModel, "forward", limited)


def test_where_the_compiler_raises_layers_are_not_compiled(
    ready: Any, alone: Paths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, paths = ready()
    planned(monkeypatch, "compiled_layers", "compiled_surroundings")
    monkeypatch.setattr(INDUCTOR, broken_compiler)
    events: list[Event] = []
    report = train(config, paths, PARADIGM, [events.append])
    assert_same(paths, alone)
    (fall,) = (event for event in events if isinstance(event, FellBack))
    assert fall.line.startswith("the training goes on with layers that are not compiled instead of compiled layers: ")
    assert "AssertionError: reorder_loops_by_dep_pair" in fall.line
    assert "\n" not in fall.line
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings.count(fall.line) == 1
    assert report.fallbacks == (fall.line,)
    assert artifacts.read(paths.model(PARADIGM), "train", TrainReport).report.fallbacks == (fall.line,)
    for name in ("compiled_layers", "compiled_surroundings"):
        assert report.execution[name] == {"on": False, "reason": fall.reason}


def test_where_a_capture_fails_there_is_no_graph_and_where_the_compiler_raises_too_there_is_neither(
    ready: Any, alone: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config, captured), (_, compiled) = ready("captured"), ready("compiled")
    planned(monkeypatch, "cuda_graph", "compiled_layers")
    cuda_that_breaks(monkeypatch, at=1)
    report = train(config, captured, PARADIGM)
    assert_same(captured, alone)
    (line,) = report.fallbacks
    assert line.startswith("the training goes on with compiled layers instead of a CUDA graph: RuntimeError: operation")
    assert not report.execution["cuda_graph"]["on"]
    assert report.execution["compiled_layers"]["on"]

    monkeypatch.setattr(INDUCTOR, broken_compiler)
    report = train(config, compiled, PARADIGM)
    assert_same(compiled, alone)
    assert [line.split(" instead of ")[1].split(":")[0] for line in report.fallbacks] == [
        "a CUDA graph", "compiled layers",
    ]  # fmt: skip


def test_where_a_kernel_cannot_be_used_attention_is_torch_s_own(
    ready: Any, alone: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, paths = ready()
    planned(monkeypatch, "attention_kernel")
    monkeypatch.setitem(sys.modules, "dti_pipeline.modeling.attention.kernel", None)  # as on a card that Triton lacks
    report = train(config, paths, PARADIGM)
    assert_same(paths, alone)
    (line,) = report.fallbacks
    assert line.startswith("the training goes on with torch's own attention instead of layers that are not compiled: ")
    assert not report.execution["attention_kernel"]["on"]


def test_where_memory_runs_out_micro_batches_are_halved(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (config, paths), (halved, expected) = ready(), ready("halved", tokens_per_batch=256)
    train(halved, expected, PARADIGM)
    memory_for(monkeypatch, rows=0, times=1)
    report = train(config, paths, PARADIGM)
    assert_same(paths, expected)
    (line,) = report.fallbacks
    assert line == (
        "the training goes on with micro-batches of 256 tokens instead of 512: out of memory; set"
        " training.tokens_per_batch to 256 (OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.)"
    )


def test_micro_batches_are_halved_down_to_one_row_and_then_the_training_is_refused(
    ready: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config, paths), (single, expected) = ready(), ready("single", tokens_per_batch=128)
    train(single, expected, PARADIGM)
    with pytest.MonkeyPatch.context() as patch:
        memory_for(patch, rows=1)
        assert len(train(config, paths, PARADIGM).fallbacks) == 2
    assert_same(paths, expected)

    before = outcome(paths)[0]
    memory_for(monkeypatch, rows=0)
    with pytest.raises(
        InputError, match=r"a micro-batch of one row of 128 tokens does not fit the memory: make packing"
    ):
        train(config, paths, PARADIGM)
    assert all(torch.equal(before[name], tensor) for name, tensor in outcome(paths)[0].items())


def test_a_continued_training_that_falls_back_is_the_one_that_was_left_alone(
    ready: Any, alone: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its moments and random generators come from the checkpoint."""
    config, paths = ready()

    def interrupt(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(CheckFailed, match="interrupted at step 3;"):
        train(config, paths, PARADIGM, [interrupt])
    with pytest.MonkeyPatch.context() as patch:
        memory_for(patch, rows=0)
        with pytest.raises(InputError, match="does not fit the memory"):
            train(config, paths, PARADIGM)
    planned(monkeypatch, "cuda_graph", "compiled_layers")
    monkeypatch.setattr(INDUCTOR, broken_compiler)
    assert len(train(config, paths, PARADIGM).fallbacks) == 2
    assert_same(paths, alone)


# The choice alone, with runners that only say what they are asked


class Runner:
    """Fails as it is told to, after it has changed what a trial may change."""

    pads_targets = False

    def __init__(self, parameter: torch.nn.Parameter, error: BaseException | None) -> None:
        self._parameter, self._error = parameter, error
        self.rows: list[int] = []

    def gradients(self, share: Any) -> torch.Tensor:
        raise NotImplementedError

    def update(self, rate: float) -> torch.Tensor:
        raise NotImplementedError

    def try_out(self, share: Any) -> None:
        self.rows += [len(batch.token) for batch in share.batches]
        torch.rand(3)
        self._parameter.grad = torch.ones_like(self._parameter)
        if self._error is not None:
            raise self._error


def chosen(errors: list[BaseException | None], pads: bool = False, **accelerator: Any) -> Any:
    """The choice between as many forms, the trial's effects, and what was told."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    log = Log.random(users=30, seed=2)
    rows = log.rows(3, 2, 96)
    loader = Loader(rows, Steps(rows, 10**9, 1, 0), 4 * 96, CPU)
    assert loader.rows_per_batch == 4
    runners = [Runner(parameter, error) for error in errors]
    forms = [Form(f"form {number}", lambda runner=runner: runner, pads) for number, runner in enumerate(runners)]
    told: list[FellBack] = []
    processes = SimpleNamespace(**{"num_processes": 1, "device": CPU, **accelerator})
    before = torch.get_rng_state()
    try:
        choice = choose(forms, loader, 0, optimizer, processes, told.append)  # type: ignore[arg-type]
    finally:
        assert torch.equal(torch.get_rng_state(), before)
        assert parameter.grad is None
    return choice, runners, told


def test_the_first_form_that_works_is_chosen() -> None:
    choice, runners, told = chosen([RuntimeError("no"), ValueError("neither"), None, None])
    assert choice.runner is runners[2]
    assert [(fall.lost, fall.instead, fall.reason) for fall in told] == [
        ("form 0", "form 1", "RuntimeError: no"),
        ("form 1", "form 2", "ValueError: neither"),
    ]
    assert choice.falls == told
    assert runners[0].rows == [4, 4], "a trial takes two micro-batches: the second has the first's gradients beside it"
    assert runners[3].rows == []


def test_rows_have_one_number_of_targets_where_a_form_would_compile_for_each() -> None:
    for pads in (False, True):
        choice, _, _ = chosen([None], pads=pads)
        assert choice.loader.pad_targets == pads


def test_the_last_form_s_error_and_any_refusal_are_raised() -> None:
    with pytest.raises(ValueError, match="neither"):
        chosen([RuntimeError("no"), ValueError("neither")])
    with pytest.raises(InputError, match="wrong"):
        chosen([InputError("wrong"), None])
    with pytest.raises(KeyboardInterrupt):
        chosen([KeyboardInterrupt(), None])


def test_memory_is_asked_of_every_form_down_to_one_row() -> None:
    choice, runners, told = chosen([torch.OutOfMemoryError("full"), None])
    assert choice.runner is runners[1]
    assert choice.loader.rows_per_batch == 1
    assert [rows for rows in (4, 2, 1) if rows in runners[0].rows] == [4, 2, 1]
    assert [fall.instead for fall in told] == ["micro-batches of 192 tokens", "micro-batches of 96 tokens", "form 1"]
    full = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    with pytest.raises(InputError, match="does not fit the memory"):
        chosen([full])


def test_a_form_that_fails_in_another_process_is_not_chosen_here() -> None:
    flags: list[list[int]] = []

    def reduce(mine: torch.Tensor, how: str) -> torch.Tensor:
        flags.append(mine.tolist())
        assert how == "sum"
        return mine + torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]][len(flags) - 1], dtype=mine.dtype)

    choice, runners, told = chosen([None, None], num_processes=2, reduce=reduce)
    assert choice.runner is runners[1]
    assert choice.loader.rows_per_batch == 2
    assert flags == [[0, 0, 0]] * 3
    assert [fall.instead for fall in told] == ["form 1", "micro-batches of 192 tokens"]
    assert told[0].reason == "it failed in another process"


def test_an_error_in_one_line_names_what_is_behind_it() -> None:
    def raised(function: Any) -> BaseException:
        with pytest.raises(Exception) as caught:
            function()
        return caught.value

    def broke() -> None:
        try:
            raise ValueError("  \n a wait \n more")
        finally:
            raise RuntimeError("capture broke off")

    def hidden() -> None:
        try:
            raise ValueError("x")
        except ValueError:
            raise AssertionError from None

    assert in_one_line(raised(broke)) == "RuntimeError: capture broke off, after ValueError: a wait"
    assert in_one_line(raised(hidden)) == "AssertionError"
    assert len(in_one_line(ValueError("x" * 5000))) < 400
