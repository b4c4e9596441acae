"""Proof 5: a step's loss and gradients are the mean of its targets' own, however they are packed: in streaming prompts
or alone, many prompts a row or one, one pass or many, one process or several."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits

from dti_pipeline.config import TrainingConfig
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.reader import Rows
from dti_pipeline.paradigms import names
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.runner import EagerRunner
from dti_pipeline.training.steps import Steps
from tests.model.conftest import Log, alone, histories, small_model

Gradients = dict[str, torch.Tensor]
CPU = torch.device("cpu")
logs = st.builds(Log.random, **histories)


def trained_on(model: CTRModel, rows: Rows, tokens_per_batch: int, step: int = 0, rank: int = 0, world: int = 1,
               steps: Steps | None = None) -> tuple[float, Gradients]:  # fmt: skip
    """Mean loss and gradients of a step, as the loop makes them; the only step has all rows."""
    model.zero_grad(set_to_none=True)
    loader = Loader(rows, steps or Steps(rows, 10**9, 1, 0), tokens_per_batch, CPU, rank, world)
    share = loader.micro_batches(step)
    runner = EagerRunner(model, optimizer_for(model, TrainingConfig(device="cpu")), Accelerator(cpu=True), 1.0)
    loss = float(runner.gradients(share)) / share.step.targets
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_by_one(model: CTRModel, log: Log, rows: Rows) -> tuple[float, Gradients]:
    """The same in plain words: each prompt alone in a row, each target's loss, added up and divided by their number."""
    model.zero_grad(set_to_none=True)
    single = dataclasses.replace(rows, row=np.arange(len(rows.start)))
    batch = log.batch_of(single)
    losses = binary_cross_entropy_with_logits(model(batch), batch.label, reduction="none")
    mean = sum(losses) / len(losses)
    mean.backward()
    return float(mean.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in found[1].items():
        torch.testing.assert_close(gradient, expected[1][name], atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("paradigm", names())
@given(
    log=logs,
    n=st.integers(0, 4),
    k=st.sampled_from([2, 3, None]),
    row_length=st.sampled_from([96, 128, 256]),
    rows_per_pass=st.integers(1, 4),
)
@settings(max_examples=8, deadline=None)
def test_a_packed_step_is_the_mean_over_its_targets(
    paradigm: str, log: Log, n: int, k: int | None, row_length: int, rows_per_pass: int
) -> None:
    model = small_model(paradigm, n, initial_std=0.1)
    rows = log.rows(n, 1 if paradigm == "sliding_window" else k, row_length)
    assert_same(trained_on(model, rows, rows_per_pass * row_length), one_by_one(model, log, rows))


@pytest.mark.parametrize("paradigm", ["dti_growing", "dti_isolated"])
@given(log=logs, n=st.integers(0, 4), k=st.sampled_from([2, 3, None]))
@settings(max_examples=8, deadline=None)
def test_streaming_and_single_prompts_are_one_loss(paradigm: str, log: Log, n: int, k: int | None) -> None:
    """With proof 2: where logits are equal, training on k targets a prompt is training on one, only cheaper."""
    model = small_model(paradigm, n, initial_std=0.1)
    rows = log.rows(n, k, 128)
    own = alone(rows) if paradigm == "dti_growing" else log.rows(n, 1, 128)
    assert_same(trained_on(model, rows, 512), one_by_one(model, log, own))


def test_rows_have_unequal_numbers_of_targets_and_it_does_not_matter_how_a_step_is_cut() -> None:
    log = Log.random(users=9, seed=11)
    rows = log.rows(3, 5, 96)
    assert len(set(rows.targets().tolist())) > 2
    model = small_model("dti", 3, initial_std=0.1)
    whole = trained_on(model, rows, 10**6)
    for tokens_per_batch in (1, 2 * 96, 3 * 96):
        assert_same(trained_on(model, rows, tokens_per_batch), whole)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_a_step_and_one_without_a_row_counts_for_nothing(world: int) -> None:
    log = Log.random(users=5, seed=12)
    rows = log.rows(3, 4, 96)
    model = small_model("dti", 3, initial_std=0.1)
    steps = Steps(rows, int(rows.targets().sum()) // (len(rows) - 1), 1, 0)
    sizes = [len(steps[number].rows) for number in range(steps.count)]
    assert min(sizes) < world, "some step leaves a process without a row"
    for number in range(steps.count):
        parts = [trained_on(model, rows, 96, step=number, rank=rank, world=world, steps=steps) for rank in range(world)]
        whole = trained_on(model, rows, 96, step=number, steps=steps)
        added_up = {name: sum(part[1][name] for part in parts) for name in whole[1]}
        assert_same((sum(part[0] for part in parts), added_up), whole)
