"""A training that was interrupted and continued is the training that was left alone, bit for bit, on the CPU."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dti_pipeline.config import Config, LoraConfig
from dti_pipeline.errors import CheckFailed
from dti_pipeline.packing.pack import pack
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from dti_pipeline.training import checkpoint
from dti_pipeline.training.checkpoint import KEEP, Progress
from dti_pipeline.training.progress import Checkpointed, Event, Started, Stepped
from dti_pipeline.training.train import train
from tests.model.architectures import write

PARADIGM = "dti"


def configured(config: Config, **model: Any) -> Config:
    """Two epochs with dropout, validated on the way: whatever depends on random numbers or order would show."""
    training = dataclasses.replace(config.training, epochs=2.0, targets_per_step=24, evaluations=3)
    return dataclasses.replace(config, training=training, model=dataclasses.replace(config.model, **model))


@pytest.fixture(params=["scratch", "lora"])
def ready(request: pytest.FixtureRequest, token_home: tuple[Config, Paths], tmp_path: Path) -> tuple[Config, Paths]:
    """A home that shares the tokens, with shards of its own."""
    config, made = token_home
    if request.param == "scratch":
        config = configured(config, dropout=0.2)
    else:
        base = write(tmp_path / "base", "llama", vocab_size=64)
        config = configured(config, name_or_path=base, lora=LoraConfig(rank=4, alpha=8))
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
    steps = report["steps"]
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
        assert again["targets"] == report["targets"]
        assert again["tokens"] == report["tokens"]
        assert_same(outcome(paths), alone)
        assert not paths.checkpoints(PARADIGM).exists(), "a finished training leaves no resume state"


KILLED = """
import json, os, signal, sys
from pathlib import Path
from dti_pipeline.config import Config
from dti_pipeline.plain import from_plain
from dti_pipeline.paths import Paths
from dti_pipeline.training.progress import Stepped
from dti_pipeline.training.train import train

def die(event):
    if isinstance(event, Stepped) and event.step == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

train(from_plain(Config, json.loads(sys.argv[1])), Paths(Path(sys.argv[2])), "dti", [die])
"""


def test_killed_between_checkpoints_and_continued(ready: tuple[Config, Paths]) -> None:
    """kill -9: nothing is saved at the end; what goes on is the last checkpoint, and the steps since are done again."""
    config, paths = ready
    train(config, paths, PARADIGM)
    alone = outcome(paths)
    every_step = dataclasses.replace(config, training=dataclasses.replace(config.training, checkpoint_seconds=0))
    arguments = [json.dumps(to_plain(every_step)), str(paths.home), "6"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = sorted(path.name for path in paths.checkpoints(PARADIGM).iterdir())
    assert saved == ["step-000000004", "step-000000005"]
    events: list[Event] = []
    train(every_step, paths, PARADIGM, [events.append])
    assert next(event for event in events if isinstance(event, Stepped)).step == 6
    assert len([event for event in events if isinstance(event, Checkpointed)]) > 3
    assert_same(outcome(paths), alone)


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


def small() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5), torch.nn.Linear(2, 1))
    model[0].bias.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=0.1)


def go(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_checkpoint_restores_weights_moments_random_numbers_and_progress(tmp_path: Path) -> None:
    model, optimizer = small()
    for _ in range(3):
        go(model, optimizer)
    progress = Progress(step=3, targets_seen=12, tokens_seen=99, train_seconds=1.5, run_id="r", history=[{"loss": 1.0}])
    checkpoint.save(tmp_path, "print", progress, model, optimizer)
    go(model, optimizer)
    expected = [p.clone() for p in model.parameters()]
    other, its_optimizer = small()
    assert checkpoint.restore(tmp_path, "print", other, its_optimizer) == progress
    go(other, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), expected, strict=True))
    assert checkpoint.restore(tmp_path, "another print", other, its_optimizer) is None


def test_only_whole_checkpoints_count_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = small()
    go(model, optimizer)
    for step in range(1, 6):
        checkpoint.save(tmp_path, "print", Progress(step=step), model, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:09d}" for step in (4, 5)][-KEEP:]
    half = tmp_path / ".step-000000006"  # killed while it was written
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    found = checkpoint.restore(tmp_path, "print", model, optimizer)
    assert found is not None
    assert found.step == 5
    checkpoint.save(tmp_path, "print", Progress(step=6), model, optimizer)
    assert checkpoint.restore(tmp_path, "print", model, optimizer) == Progress(step=6)
