"""A checkpoint restores what a training had; damaged, half-written and foreign ones are passed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dti_pipeline.config import TrainingConfig
from dti_pipeline.training import checkpoint
from dti_pipeline.training.checkpoint import KEEP, Progress
from dti_pipeline.training.optimizer import optimizer_for


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
    checkpoint.save(tmp_path, progress, model, optimizer)
    go(model, optimizer)
    expected = [p.clone() for p in model.parameters()]
    other, its_optimizer = small()
    assert checkpoint.restore(tmp_path, other, its_optimizer) == progress
    go(other, its_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), expected, strict=True))
    assert checkpoint.restore(tmp_path / "another", other, its_optimizer) is None


def test_every_process_gets_its_own_random_numbers_back(tmp_path: Path) -> None:
    model, optimizer = small()
    states = torch.stack([torch.Generator().manual_seed(seed).get_state() for seed in (1, 2)])
    checkpoint.save(tmp_path, Progress(step=1), model, optimizer, {"cpu": states})
    for process, seed in enumerate((1, 2)):
        checkpoint.restore(tmp_path, model, optimizer, process)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [(name, damage) for name in (checkpoint.TENSORS, checkpoint.STATE) for damage in (truncate, Path.unlink)]
    + [(checkpoint.TENSORS, flip)],
)
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = small()
    go(model, optimizer)
    for step in (1, 2):
        checkpoint.save(tmp_path, Progress(step=step), model, optimizer)
    damage(tmp_path / "step-000000002" / name)
    assert checkpoint.restore(tmp_path, model, optimizer) == Progress(step=1)
    assert "step-000000002 is damaged" in caplog.text


def test_a_checkpoint_of_another_optimizer_is_not_continued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As an earlier version's was, which had its moments weight by weight."""
    model, optimizer = small()
    go(model, optimizer)
    checkpoint.save(tmp_path, Progress(step=1), model, optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    go(model, optimizer)
    after = [parameter.detach().clone() for parameter in model.parameters()]
    flat = optimizer_for(model, TrainingConfig())
    assert checkpoint.restore(tmp_path, model, flat) is None
    assert "the training begins anew" in caplog.text
    assert all(map(torch.equal, model.parameters(), after))
    assert not all(map(torch.equal, before, after))


def test_only_whole_checkpoints_count_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = small()
    go(model, optimizer)
    for step in range(1, 6):
        checkpoint.save(tmp_path, Progress(step=step), model, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:09d}" for step in (4, 5)][-KEEP:]
    half = tmp_path / ".step-000000006"  # killed while it was written
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    found = checkpoint.restore(tmp_path, model, optimizer)
    assert found is not None
    assert found.step == 5
    checkpoint.save(tmp_path, Progress(step=6), model, optimizer)
    assert checkpoint.restore(tmp_path, model, optimizer) == Progress(step=6)
