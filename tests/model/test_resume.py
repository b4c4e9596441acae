"""A training that was interrupted and continued is the training that was left alone, bit for bit, on the CPU."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dti_pipeline import pipeline
from dti_pipeline.config import Config, LoraConfig, TrackingConfig
from dti_pipeline.errors import CheckFailed
from dti_pipeline.packing.pack import pack
from dti_pipeline.paths import Paths
from dti_pipeline.training import loop
from dti_pipeline.training.progress import Event, Started, Stepped
from dti_pipeline.training.train import train
from tests import killing
from tests.model.architectures import write

PARADIGM = "dti"
TRAIN = pipeline.TRAIN


def configured(config: Config, **model: Any) -> Config:
    """Two epochs with dropout, validated on the way: whatever depends on random numbers or order would show."""
    training = dataclasses.replace(config.training, epochs=2.0, targets_per_step=24, evaluations=3, average_decay=0.9)
    return dataclasses.replace(config, training=training, model=dataclasses.replace(config.model, **model))


@pytest.fixture(params=["scratch", "lora", "lora in bfloat16"])
def ready(
    request: pytest.FixtureRequest, token_home: tuple[Config, Paths], tmp_path: Path
) -> Iterator[tuple[Config, Paths]]:
    """A packed home and its configuration, for each kind of model."""
    AcceleratorState._reset_state()  # a process has one precision, usually
    config, made = token_home
    if request.param == "scratch":
        config = configured(config, dropout=0.2)
    else:
        base = write(tmp_path / "base", "llama", vocab_size=64)
        config = configured(config, name_or_path=base, lora=LoraConfig(rank=4, alpha=8))
        if request.param != "lora":
            config = dataclasses.replace(config, training=dataclasses.replace(config.training, dtype="bfloat16"))
    yield packed(config, made, tmp_path)
    AcceleratorState._reset_state()


def packed(config: Config, made: Paths, tmp_path: Path) -> tuple[Config, Paths]:
    """A home that shares the tokens, with shards of its own."""
    paths = Paths(tmp_path / "home")
    (paths.home / "data").mkdir(parents=True)
    paths.tokens.symlink_to(made.tokens)
    pack(config, paths, PARADIGM)
    return config, paths


def outcome(paths: Paths) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    """Published tensors, and the history without its clock."""
    folder = paths.model(PARADIGM)
    files = sorted(folder.rglob("*.safetensors"))
    tensors = {f"{file.name}/{name}": t for file in files for name, t in load_file(file).items()}
    with (folder / "history.csv").open(newline="") as handle:
        history = [{k: v for k, v in row.items() if k != "train_seconds"} for row in csv.DictReader(handle)]
    return tensors, history


def assert_same(one: Any, other: Any) -> None:
    assert one[0].keys() == other[0].keys()
    assert len(one[0]) > 2
    assert [name for name in one[0] if not torch.equal(one[0][name], other[0][name])] == []
    assert one[1] == other[1]


def interrupt_at(step: int, number: signal.Signals) -> Any:
    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == step:
            os.kill(os.getpid(), number)

    return listen


def test_interrupted_at_any_steps_and_continued(ready: tuple[Config, Paths], tmp_path: Path) -> None:
    config, paths = ready
    report = train(config, paths, PARADIGM)
    alone = outcome(paths)
    steps = report.steps
    assert steps >= 8
    draw = random.Random(4)
    for number in (signal.SIGINT, signal.SIGTERM):
        for at in sorted(draw.sample(range(1, steps), 3)):
            with pytest.raises(CheckFailed, match=f"interrupted at step {at}; run it again to go on"):
                train(config, paths, PARADIGM, [interrupt_at(at, number)])
        events: list[Event] = []
        again = train(config, paths, PARADIGM, [events.append])
        started = next(event for event in events if isinstance(event, Started))
        assert 0 < started.targets_seen < started.targets_total
        assert again.targets == report.targets
        assert again.tokens == report.tokens
        assert_same(outcome(paths), alone)
        assert not paths.checkpoints(PARADIGM).exists(), "a finished training leaves no resume state"


def test_a_training_that_diverges_publishes_nothing_and_keeps_no_such_weights(
    token_home: tuple[Config, Paths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, paths = packed(configured(token_home[0]), token_home[1], tmp_path)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, checkpoint_seconds=0))
    compute = loop.Trainer._step

    def step(trainer: loop.Trainer, share: Any) -> Any:
        loss, norm, rate = compute(trainer, share)
        return loss * (math.nan if trainer.progress.step >= 4 else 1.0), norm, rate

    monkeypatch.setattr(loop.Trainer, "_step", step)
    with pytest.raises(CheckFailed, match=r"training diverged: by step 5 of \d+ the loss is nan .* now 0\.00"):
        train(config, paths, PARADIGM)
    assert not paths.model(PARADIGM).exists()
    monkeypatch.setattr(loop.Trainer, "_step", compute)
    events: list[Event] = []
    train(config, paths, PARADIGM, [events.append])
    assert events[0].targets_seen > 0, "the checkpoint from before stands"


def test_a_step_that_is_larger_than_asked_for_is_said(token_home: tuple[Config, Paths], tmp_path: Path) -> None:
    config, paths = packed(configured(token_home[0]), token_home[1], tmp_path)
    events: list[Event] = []
    asked = dataclasses.replace(config.training, targets_per_step=1)
    train(dataclasses.replace(config, training=asked), paths, PARADIGM, [events.append])
    started = next(event for event in events if isinstance(event, Started))
    assert [line for line in started.execution if "not training.targets_per_step = 1: a row of" in line]


def test_the_run_that_a_tracker_names_is_noted_at_the_start_and_forgotten_when_its_record_is_closed(
    ready: tuple[Config, Paths],
) -> None:
    config, paths = ready
    known: list[str | None] = []

    def tracker(event: Event) -> str | None:
        if not isinstance(event, Started):
            return None
        known.append(event.run_id)
        return event.run_id or f"run {len(known)}"

    def end_with(error: BaseException) -> Any:
        def listen(event: Event) -> None:
            if isinstance(event, Stepped):
                raise error

        return listen

    for error in (KeyboardInterrupt(), ValueError("diverged")):
        with pytest.raises(type(error)):
            train(config, paths, PARADIGM, [tracker, end_with(error)])
    events: list[Event] = []
    report = train(config, paths, PARADIGM, [tracker, events.append])
    assert known == [None, "run 1", None], "one that was killed goes on in its run, one that failed does not"
    assert report.mlflow_run_id == "run 3"
    assert next(event.run_id for event in events if isinstance(event, Started)) == "run 3"
    assert not paths.checkpoints(PARADIGM).exists()


def kill_at(config: Config, paths: Paths, step: int, half_written: bool = False) -> None:
    assert killing.train(config, paths, PARADIGM, step, half_written) == -signal.SIGKILL


def records(paths: Paths) -> Any:
    """The home's MLflow store."""
    from mlflow import MlflowClient  # here: the tests for GPUs run where there is none

    return MlflowClient(paths.tracking_uri)


def curves(paths: Paths) -> list[dict[str, Any]]:
    """Of every run in the home's MLflow: id, status, and the points of what does not depend on a clock, in order."""
    store = records(paths)
    found = []
    for run in store.search_runs([store.get_experiment_by_name("dti").experiment_id]):
        names = ("train/loss", "train/learning_rate", "train/gradient_norm", "eval/auc", "eval/log_loss")
        points = {
            name: [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, name)]
            for name in names
        }
        found.append({"id": run.info.run_id, "status": run.info.status, "points": points})
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "ready",
    ["scratch", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("lora", "lora in bfloat16"))],
    indirect=True,
)
def test_killed_several_times_and_continued(ready: tuple[Config, Paths], tmp_path: Path) -> None:
    """kill -9 at random steps, once while a checkpoint is written: the model, the history and the one MLflow run are
    those of a training that was left alone. Nothing is saved at the end; the steps since the last save are done again.
    """
    killing.preload(killing.FEW)
    config, left_alone = ready
    tracked = dataclasses.replace(config, tracking=TrackingConfig())
    every_step = dataclasses.replace(tracked, training=dataclasses.replace(config.training, checkpoint_seconds=0))
    records(left_alone).search_experiments()  # makes the store: seconds, once
    paths = Paths(tmp_path / "killed")
    shutil.copytree(left_alone.home, paths.home, symlinks=True)
    steps = pipeline.execute(TRAIN, tracked, left_alone, PARADIGM).steps
    alone, (run,) = outcome(left_alone), curves(left_alone)

    first, second, third = sorted(random.Random(11).sample(range(2, steps), 3))
    kill_at(tracked, paths, 1)
    assert not any(paths.checkpoints(PARADIGM).glob("*/step-*")), "killed before the first checkpoint"
    kill_at(every_step, paths, first)
    assert first_step(paths) == first - 1, "the newest checkpoint is that of the step before"
    kill_at(every_step, paths, second, half_written=True)
    assert first_step(paths) == second - 1, "half a checkpoint does not count"
    kill_at(every_step, paths, third)
    (killed,) = curves(paths)
    assert killed["status"] == "RUNNING", "nobody told MLflow"

    events: list[Event] = []
    pipeline.execute(TRAIN, every_step, paths, PARADIGM, [events.append])
    assert next(event for event in events if isinstance(event, Stepped)).step == third
    assert_same(outcome(paths), alone)
    (continued,) = curves(paths)
    assert continued == {**run, "id": killed["id"]}
    assert len(continued["points"]["train/loss"]) == steps
    assert not paths.checkpoints(PARADIGM).exists(), "a finished training leaves no resume state"


def first_step(paths: Paths) -> int:
    """Step of the newest checkpoint."""
    return max(int(path.name.removeprefix("step-")) for path in paths.checkpoints(PARADIGM).glob("*/step-*"))


def test_a_checkpoint_of_another_training_is_never_continued(token_home: tuple[Config, Paths], tmp_path: Path) -> None:
    config = configured(token_home[0])
    paths = Paths(tmp_path)
    (tmp_path / "data").mkdir()
    paths.tokens.symlink_to(token_home[1].tokens)
    pack(config, paths, PARADIGM)
    with pytest.raises(CheckFailed):
        train(config, paths, PARADIGM, [interrupt_at(3, signal.SIGINT)])
    for other in (
        dataclasses.replace(config, training=dataclasses.replace(config.training, learning_rate=0.01)),
        dataclasses.replace(config, model=dataclasses.replace(config.model, hidden_size=8, intermediate_size=12)),
    ):
        events: list[Event] = []
        with pytest.raises(CheckFailed, match="interrupted at step 1;"):
            train(other, paths, PARADIGM, [events.append, interrupt_at(1, signal.SIGINT)])
        assert events[0].targets_seen == 0  # type: ignore[union-attr]
    events = []
    with pytest.raises(CheckFailed, match="interrupted at step 5;"):
        train(config, paths, PARADIGM, [events.append, interrupt_at(5, signal.SIGINT)])
    assert events[0].targets_seen > 0, "the others did not cost the first one its checkpoint"  # type: ignore[union-attr]


def test_signals_that_come_together_are_one_request(token_home: tuple[Config, Paths], tmp_path: Path) -> None:
    """A terminal's Ctrl-C reaches torchrun and its processes, and torchrun passes its own on."""
    config = configured(token_home[0])
    paths = Paths(tmp_path)
    (tmp_path / "data").mkdir()
    paths.tokens.symlink_to(token_home[1].tokens)
    pack(config, paths, PARADIGM)

    def insist(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)

    with pytest.raises(CheckFailed, match="interrupted at step 3;"):
        train(config, paths, PARADIGM, [insist])
    assert first_step(paths) == 3
