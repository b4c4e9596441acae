"""Rows to optimizer steps: every row once an epoch, steps of about equal size, any step the same when asked again; and
the optimizer's learning rate and moments."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.config import TrainingConfig
from dti_pipeline.packing import reader
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import uniform_store
from dti_pipeline.training import steps as module
from dti_pipeline.training.optimizer import allocate_moments, learning_rate, optimizer_for
from dti_pipeline.training.steps import Steps

rows = st.lists(st.integers(1, 60), min_size=1, max_size=80).map(np.array)
LOG = uniform_store(users=1, interactions=2, tokens=2)
#: Rows of a part: what plans here have at most, and fewer.
PARTS = st.sampled_from([module.PART, 30, 7, 1])


def plan_of(targets: np.ndarray, prompts: int = 1) -> Rows:
    """A plan of rows with so many targets, in ``prompts`` prompts each, the first with all but one target."""
    stop = np.ones((len(targets), prompts), np.int64)
    stop[:, 0] = targets - prompts + 1
    first = np.zeros(stop.size, np.int64)
    return Rows(LOG, 96, first, first, stop.ravel(), np.repeat(np.arange(len(targets), dtype=np.int32), prompts))


def steps_of(targets: np.ndarray, per_step: int, epochs: float, seed: int, part: int = module.PART) -> Steps:
    with patch.object(module, "PART", part):
        return Steps(plan_of(targets), per_step, epochs, seed)


@given(targets=rows, part=PARTS, per_step=st.integers(1, 200), seed=st.integers(0, 50), epochs=st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_every_row_is_seen_exactly_once_an_epoch(
    targets: np.ndarray, part: int, per_step: int, seed: int, epochs: int
) -> None:
    steps = steps_of(targets, per_step, epochs, seed, part)
    assert steps.count % epochs == 0
    assert steps.targets == epochs * targets.sum()
    every = [steps[number] for number in range(steps.count)]
    each = steps.count // epochs
    orders = []
    for epoch in range(epochs):
        seen = np.concatenate([step.rows for step in every[epoch * each : (epoch + 1) * each]])
        assert sorted(seen.tolist()) == list(range(len(targets)))
        orders.append(seen.tolist())
    assert steps.most_rows == max(len(step.rows) for step in every)
    before = 0
    for number, step in enumerate(every):
        assert step.number == number
        assert len(step.rows) > 0
        assert step.targets == targets[step.rows].sum()
        assert step.targets_before == before
        before += step.targets
    if len(targets) > 8 and epochs > 1:
        assert orders[0] != orders[1], "each epoch has an order of its own"


@given(
    targets=rows,
    part=PARTS,
    per_step=st.integers(1, 200),
    seed=st.integers(0, 50),
    asked=st.lists(st.integers(0, 10**6), max_size=8),
)
@settings(max_examples=100, deadline=None)
def test_a_step_is_the_same_whenever_it_is_asked_for(
    targets: np.ndarray, part: int, per_step: int, seed: int, asked: list[int]
) -> None:
    steps = steps_of(targets, per_step, 3, seed, part)
    in_order = [steps[number] for number in range(steps.count)]
    fresh = steps_of(targets, per_step, 3, seed, part)  # a process that was started again
    for number in (n % steps.count for n in asked):
        again = fresh[number]
        assert again.rows.tolist() == in_order[number].rows.tolist()
        assert (again.targets, again.targets_before) == (in_order[number].targets, in_order[number].targets_before)


@given(targets=rows, per_step=st.integers(1, 200), seed=st.integers(0, 50))
@settings(max_examples=100, deadline=None)
def test_steps_have_equally_many_rows_and_as_many_targets_as_asked_for(
    targets: np.ndarray, per_step: int, seed: int
) -> None:
    steps = steps_of(targets, per_step, 1, seed)
    sizes = [len(steps[number].rows) for number in range(steps.count)]
    assert max(sizes) - min(sizes) <= 1
    wanted = targets.sum() / per_step
    assert steps.count == len(targets) or abs(steps.count - wanted) <= 1


def test_full_rows_make_steps_of_nearly_equal_targets() -> None:
    """Rows of MovieLens-1M at k = 50 hold 294 targets, give or take 33: a step of seven is off by a few percent."""
    targets = np.random.default_rng(1).normal(294, 33, 2635).round().astype(np.int64)
    steps = steps_of(targets, 2048, 1, 0)
    sizes = np.array([steps[number].targets for number in range(steps.count)])
    assert steps.most_rows == 7
    assert abs(sizes.mean() / 2048 - 1) < 0.01
    assert sizes.std() / sizes.mean() < 0.06


def test_epochs_may_be_a_fraction() -> None:
    targets = np.full(100, 4)
    steps = steps_of(targets, 16, 2.5, 0)
    assert steps.count == 62
    assert steps.targets == sum(steps[number].targets for number in range(steps.count)) == 62 * 16
    assert steps.most_rows == 4


def test_a_plan_of_one_part_is_shuffled_whole() -> None:
    """In the order that published models were trained in."""
    targets = np.arange(1, 501)
    steps = steps_of(targets, 2000, 3, seed=9)
    for epoch in range(3):
        seen = np.concatenate(
            [steps[number].rows for number in range(steps.count // 3 * epoch, steps.count // 3 * (epoch + 1))]
        )
        assert (seen == np.random.default_rng([9, epoch]).permutation(500)).all()


def test_a_part_is_of_rows_from_all_over_the_plan_and_no_array_is_longer() -> None:
    """Memory of a process: arrays of a part's rows and of the number of parts, however long the plan is."""
    for length in (1_000, 16_000):
        steps = steps_of(np.full(length, 3), 30, 1, 0, part=250)
        seen = np.concatenate([steps[number].rows for number in range(25)])
        assert np.abs(np.diff(np.sort(seen)) - length / 250).max() == 0
        assert np.abs(np.bincount(seen * 10 // length) - 25).max() <= 1
        held = [*vars(steps).values(), *steps._drawn]
        assert max(len(array) for array in held if isinstance(array, np.ndarray)) <= 251


@given(targets=rows, prompts=st.integers(1, 4), most=st.integers(0, 400), chunk=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_targets_of_a_plan_are_counted_some_rows_at_a_time(
    targets: np.ndarray, prompts: int, most: int, chunk: int
) -> None:
    targets = targets + prompts
    plan = plan_of(targets, prompts)
    with patch.object(reader, "CHUNK", chunk):
        assert plan.targets().tolist() == np.concatenate([*plan.targets_in_chunks()]).tolist() == targets.tolist()
        assert plan.most_targets == targets.max()
        assert plan.first(most) == (targets.cumsum() <= most).sum()
    some = np.arange(len(targets))[::-2]
    assert plan.targets(some).tolist() == targets[some].tolist()
    first, end = plan.prompts(some)
    assert (first.tolist(), (end - first).tolist()) == ((some * prompts).tolist(), [prompts] * len(some))


def test_the_learning_rate_rises_falls_and_ends_where_it_is_told() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_share=0.1, final_learning_rate_share=0.2)
    rates = [learning_rate(config, seen, 1000) for seen in range(0, 1001, 10)]
    assert rates[0] == 0
    assert max(rates) == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.2)
    assert all(a < b for a, b in itertools.pairwise(rates[:11]))
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


def test_moments_that_are_allocated_ahead_change_no_step() -> None:
    weights = []
    for ahead in (True, False):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.LayerNorm(5))
        optimizer = optimizer_for(model, TrainingConfig(weight_decay=0.1))
        for _ in range(3):
            if ahead:  # also where some are there already, as a checkpoint's are: they stay
                allocate_moments(optimizer)
            model(torch.ones(2, 7)).square().sum().backward()
            optimizer.step()
        weights.append(list(model.parameters()))
    assert all(map(torch.equal, *weights))
