"""What a CUDA graph may replay: micro-batches that never wait for the device, and whose kernels are those recorded."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.nn.functional import binary_cross_entropy_with_logits

from dti_pipeline.modeling.attention.sums import rows as sum_rows
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paradigms import named, names
from dti_pipeline.training.graphed import GraphedRunner
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.steps import Steps
from tests.model.conftest import RULES, Log, filled, k_of, planned, small_model


@pytest.mark.parametrize("changes", [{}, {"forgetting": "linear"}], ids=["last layer", "fixes"])
def test_a_batch_whose_sums_need_more_room_is_recorded_anew(
    changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels of a smaller batch's sizes would let [SUM]s read less than they see, without a word."""
    monkeypatch.setattr(sum_rows, "KEYS", 64)
    model = planned(small_model("dti", 3, **changes), last_layer_at_sums=not changes, attention_kernel=True)
    few, many = (Log.of([[([5] * length, 1) for _ in range(20)]]).batch(3, None, row_length=256) for length in (9, 1))
    runner: Any = SimpleNamespace(_model=model)
    first = GraphedRunner._key(runner, few)
    assert GraphedRunner._key(runner, few) == first
    assert GraphedRunner._key(runner, many)[2].places > first[2].places


def test_batches_that_were_foreseen_are_recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sum_rows, "KEYS", 64)
    rows = Log.of([[([5] * length, 1) for _ in range(20)] for length in (9, 9, 1, 1, 1, 1)]).rows(3, 4, 256)
    steps = Steps(rows, 1, 1.0, 0)
    batches = [*Loader(rows, steps, 256, torch.device("cpu"), pad_targets=True).examples(1 << 20)]
    assert len(batches) == len(rows)

    def recordings(model: CTRModel) -> int:
        runner: Any = SimpleNamespace(_model=model)
        keys = [GraphedRunner._key(runner, batch) for batch in batches]
        return 1 + sum(key != before for before, key in pairwise(keys))

    assert recordings(planned(small_model("dti", 3), last_layer_at_sums=True, attention_kernel=True)) > 1
    model = planned(small_model("dti", 3), last_layer_at_sums=True, attention_kernel=True)
    for batch in batches:
        model.foresee(batch)
    assert recordings(model) == 1


def test_a_batch_with_late_labels_is_recorded_anew_and_the_rest_are_as_it_is() -> None:
    """Kernels that do not ask which labels a query knows would show it all of them, without a word."""
    model = planned(small_model("dti", 3), attention_kernel=True)
    histories = [[([5], 1) for _ in range(20)]]
    known, late = (
        Log.of(histories, late=[(list(range(20)), told)]).batch(3, None, row_length=64)
        for told in (list(range(20)), [max(0, i - 2) for i in range(20)])
    )
    runner: Any = SimpleNamespace(_model=model)
    before, of_late, after = (GraphedRunner._key(runner, batch) for batch in (known, late, known))
    assert before != of_late == after


@RULES
@pytest.mark.parametrize("paradigm", names())
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
def test_no_shape_of_a_micro_batch_depends_on_its_values(
    paradigm: str, prefix: tuple[int, ...], fixes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tensors that hold nothing: whoever asked for a value, or for as many rows as are True, would get an error,
    as he would from CUDA while it records."""
    log = Log.random(users=6, seed=5, shortest=8, prefix=prefix)
    host = filled(log, log.rows(3, k_of(paradigm), 256))
    model = planned(small_model(paradigm, 3, prefix=len(prefix), dropout=0.1, **fixes), attention_kernel=True).train()
    sizes, late = model.attention.sizes(host, named(paradigm)), host.late
    monkeypatch.setattr(model.attention, "sizes", lambda batch, paradigm: sizes)
    monkeypatch.setattr(model.attention, "late", lambda batch: late)
    mode = FakeTensorMode()
    parameters = {name: torch.nn.Parameter(mode.from_tensor(p.detach())) for name, p in model.named_parameters()}
    buffers = {name: mode.from_tensor(b) for name, b in model.named_buffers()}
    batch = dataclasses.replace(host._each(mode.from_tensor), host=host)
    with mode:

        def take() -> None:
            logits = torch.func.functional_call(model, {**parameters, **buffers}, (batch,))
            binary_cross_entropy_with_logits(logits, batch.label, batch.weight, reduction="sum").backward()

        with pytest.raises(DynamicOutputShapeException):  # a value read from the device
            mode.from_tensor(batch.label).nonzero()
        take()
    assert all(p.grad is not None for name, p in parameters.items() if "layers" in name)
