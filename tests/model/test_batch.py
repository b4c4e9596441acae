"""Padded batches, and batches in one buffer: the same tensors and the same gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from dti_pipeline.modeling.masks.visibility import intervals
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.paradigms import named, names
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.steps import Steps
from tests.model.conftest import RULES, Log, filled, histories, k_of, small_model

CPU = torch.device("cpu")
logs = st.builds(Log.random, prefix=st.sampled_from([(), (9, 8)]), **histories)


@RULES
@pytest.mark.parametrize("paradigm", names())
def test_what_fills_up_a_batch_changes_neither_loss_nor_gradients(paradigm: str, fixes: dict[str, str]) -> None:
    log = Log.random(users=5, seed=3)
    rows = log.rows(3, k_of(paradigm), 128)
    assert len(set(rows.targets().tolist())) > 1
    model = small_model(paradigm, 3, initial_std=0.1, **fixes)
    found = []
    for batch in (log.batch_of(rows), filled(log, rows)):
        model.zero_grad()
        logits = model(batch)
        loss = binary_cross_entropy_with_logits(logits, batch.label, batch.weight, reduction="sum")
        loss.backward()
        counts = batch.weight.bool()
        found.append((logits[counts], loss, batch.target[counts], [p.grad for p in model.trained().values()]))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


def test_filled_batches_differ_in_no_shape() -> None:
    log = Log.random(users=9, seed=11)
    rows = log.rows(3, 5, 96)
    loader = Loader(rows, Steps(rows, 6, 1, 0), 96, CPU, pad_targets=True)
    batches = [batch for number in range(loader.steps.count) for batch in loader.micro_batches(number).batches]
    assert len({tuple(x.shape for x in batch.tensors()) for batch in batches}) == 1
    assert len({int(batch.weight.sum()) for batch in batches}) > 1
    assert sum(batch.weight.sum() for batch in batches) == rows.targets().sum()


@pytest.mark.parametrize("padded_targets", [0, 40])
def test_a_batch_in_one_piece_of_memory_is_the_same_batch(padded_targets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log.random(users=5, seed=3)
    rows = log.rows(3, 4, 128)
    batch = Batch.of(rows.assemble(np.arange(len(rows))), log.store.label, padded_targets)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "empty", lambda size, dtype, pin_memory: zeros(size, dtype=dtype))
    moved = batch.pin().to(CPU)
    assert moved.memory is not None
    memory = moved.memory.untyped_storage().data_ptr()
    for tensor, expected in zip(moved.tensors(), batch.tensors(), strict=True):
        assert torch.equal(tensor, expected)
        assert tensor.dtype == expected.dtype
        assert tensor.untyped_storage().data_ptr() == memory
    assert not moved.without_weight().to(CPU).weight.any()
    assert torch.equal(moved.weight, batch.weight)


def test_more_targets_than_places_are_an_error() -> None:
    log = Log.random(users=5, seed=3)
    rows = log.rows(3, 4, 128)
    with pytest.raises(IndexError, match="where there are to be 1"):
        Batch.of(rows.assemble(np.arange(len(rows))), log.store.label, 1)


@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]))
@settings(max_examples=30, deadline=None)
def test_a_batch_says_whether_labels_are_late(log: Log, n: int, k: int | None) -> None:
    """Kernels read no more than that of a batch whose queries all know everything before them."""
    batch = log.batch(n, k, row_length=128)
    late = any(intervals(batch.tokens, paradigm, n).late() for paradigm in map(named, names()))
    assert batch.late or not late
    if (log.store.request == log.store.position).all() and (log.store.known == log.store.position).all():
        assert not batch.late
