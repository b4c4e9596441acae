"""The loader: every step, in order, its thread not too far ahead and ended whatever happens; halved micro-batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from dti_pipeline.modeling.network.ahead import AHEAD, prefetched
from dti_pipeline.training.loader import Loader, MicroBatches
from dti_pipeline.training.steps import Step, Steps
from tests.model.conftest import Log


def a_loader() -> Loader:
    log = Log.random(users=30, seed=2)
    rows = log.rows(3, 2, 96)
    return Loader(rows, Steps(rows, 4, 3, 0), 96, torch.device("cpu"))


def test_a_thread_assembles_all_steps_in_order_and_few_ahead() -> None:
    loader, made, lock = a_loader(), [], threading.Lock()

    def counted(step: Step) -> MicroBatches:
        with lock:
            made.append(step.number)
        return loader.assemble(step)

    assert loader.steps.count > 3 * AHEAD
    asked = (loader.steps[number] for number in range(2, loader.steps.count))
    for taken, share in enumerate(prefetched(asked, counted)):
        assert share.step.number == 2 + taken
        assert len(made) <= taken + 1 + AHEAD
        expected = loader.micro_batches(share.step.number)
        for one, other in zip(share.batches, expected.batches, strict=True):
            assert all(map(torch.equal, one.tensors(), other.tensors()))
    assert sorted(made) == list(range(2, loader.steps.count))


def test_an_error_of_the_thread_is_raised_at_its_step_and_the_thread_ends_with_its_reader() -> None:
    loader = a_loader()

    def failing(step: Step) -> MicroBatches:
        if step.number == 3:
            raise OSError("the disk is gone")
        return loader.assemble(step)

    def all_steps() -> Iterator[Step]:
        return (loader.steps[number] for number in range(loader.steps.count))

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(share.step.number for share in prefetched(all_steps(), failing))
    stopped = prefetched(all_steps(), loader.assemble)
    assert next(stopped).step.number == 0
    stopped.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_halved_micro_batches_hold_the_same_steps() -> None:
    log = Log.random(users=30, seed=2)
    rows = log.rows(3, 2, 96)
    loader = Loader(rows, Steps(rows, 10**9, 1, 0), 4 * 96, torch.device("cpu"))
    heights = []
    halved: Loader | None = loader
    while halved is not None:
        share = halved.micro_batches(0)
        heights.append(max(len(batch.token) for batch in share.batches))
        assert halved.tokens_per_batch >= heights[-1] * rows.row_length
        targets = torch.cat([batch.target for batch in share.batches])
        assert torch.equal(targets, torch.cat([batch.target for batch in loader.micro_batches(0).batches]))
        halved = halved.halved()
    assert heights == [4, 2, 1]
