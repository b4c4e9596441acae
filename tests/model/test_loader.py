"""The loader's thread: every step, in order, not too far ahead; and an end to it, whatever happens."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from dti_pipeline.training.loader import AHEAD, Loader
from dti_pipeline.training.steps import Steps
from tests.model.conftest import Log


def a_loader() -> Loader:
    log = Log.random(users=30, seed=2)
    rows = log.rows(3, 2, 96)
    return Loader(rows, Steps(rows.targets(), 4, 3, 0), 96, torch.device("cpu"))


def test_threads_assemble_all_steps_in_order_and_few_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    loader, made, lock = a_loader(), [], threading.Lock()
    assemble = Loader._assemble

    def counted(self: Loader, step: Any) -> Any:
        with lock:
            made.append(step.number)
        return assemble(self, step)

    monkeypatch.setattr(Loader, "_assemble", counted)
    assert loader.steps.count > 3 * AHEAD
    steps = loader._ahead(2)
    for taken, work in enumerate(steps):
        assert work.step.number == 2 + taken
        assert len(made) <= taken + 1 + AHEAD
        expected = assemble(loader, loader.steps[work.step.number])
        for one, other in zip(work.passes, expected.passes, strict=True):
            assert all(map(torch.equal, one.tensors(), other.tensors()))
    assert sorted(made) == list(range(2, loader.steps.count))


def test_an_error_of_a_thread_is_raised_at_its_step_and_threads_end_with_their_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader, assemble = a_loader(), Loader._assemble

    def failing(self: Loader, step: Any) -> Any:
        if step.number == 3:
            raise OSError("the disk is gone")
        return assemble(self, step)

    monkeypatch.setattr(Loader, "_assemble", failing)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(work.step.number for work in loader._ahead(0))
    monkeypatch.undo()
    stopped = loader._ahead(0)
    assert next(stopped).step.number == 0
    stopped.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
