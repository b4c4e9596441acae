"""Intervals: what is resampled is users, every draw is exact, and paired differences are paired."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.evaluation import bootstrap, metrics


def population(generator: np.random.Generator, users: int, each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users with an inclination of their own: label, score, user."""
    user = np.repeat(np.arange(users), each)
    inclination = generator.normal(0, 1.5, users)[user]
    score = generator.normal(0, 1, len(user)) + inclination
    label = (generator.random(len(user)) < 1 / (1 + np.exp(-inclination - generator.normal(0, 1, len(user))))).astype(
        int
    )
    return label, score, user


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_each_resample_equals_writing_out_the_drawn_users_rows(seed: int) -> None:
    generator = np.random.default_rng(seed)
    user = generator.integers(0, 6, 40) * 11
    label, score = generator.integers(0, 2, 40), generator.integers(0, 8, 40).astype(float)
    users = bootstrap.Users(user, samples=5, seed=seed)
    distinct = np.unique(user)
    for draw, auc in zip(users.draws(), users.auc(label, score), strict=True):
        assert draw.sum() == len(distinct)
        rows = np.concatenate(
            [np.flatnonzero(user == u) for u, times in zip(distinct, draw, strict=True) for _ in range(int(times))]
        )
        expected = metrics.auc(label[rows], score[rows])
        assert np.isnan(auc) if expected is None else auc == pytest.approx(expected, abs=1e-12)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    label, score, user = population(np.random.default_rng(0), 30, 10)
    first = bootstrap.Users(user, 50, seed=1).auc(label, score)
    assert (first == bootstrap.Users(user, 50, seed=1).auc(label, score)).all()
    assert (first != bootstrap.Users(user, 50, seed=2).auc(label, score)).any()


def test_identical_scores_differ_by_exactly_nothing() -> None:
    label, score, user = population(np.random.default_rng(1), 30, 10)
    users = bootstrap.Users(user, 200, seed=1)
    difference = users.auc(label, score) - users.auc(label, score.copy())
    assert bootstrap.interval(difference, 0.95) == bootstrap.Interval(0.0, 0.0)


def test_pairing_cancels_what_both_share() -> None:
    generator = np.random.default_rng(2)
    label, score, user = population(generator, 60, 20)
    users = bootstrap.Users(user, 300, seed=1)
    close = score + generator.normal(0, 0.05, len(score))
    alone = bootstrap.interval(users.auc(label, score), 0.95)
    paired = bootstrap.interval(users.auc(label, score) - users.auc(label, close), 0.95)
    assert alone is not None
    assert paired is not None
    assert paired.high - paired.low < (alone.high - alone.low) / 5


def test_the_interval_covers_the_true_auc_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    label, score, _ = population(generator, 20_000, 10)
    truth = metrics.auc(label, score)
    assert truth is not None
    covered = 0
    for _ in range(100):
        label, score, user = population(generator, 80, 10)
        found = bootstrap.interval(bootstrap.Users(user, 200, seed=5).auc(label, score), 0.9)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert 80 <= covered <= 98


def test_rows_of_one_user_are_not_taken_for_independent() -> None:
    # Every user ten times over, as users of their own or as one: only the second knows how little there is.
    label, score, user = population(np.random.default_rng(4), 40, 5)
    label, score = np.tile(label, 10), np.tile(score, 10)
    clustered = bootstrap.interval(bootstrap.Users(np.tile(user, 10), 300, seed=1).auc(label, score), 0.95)
    apart = bootstrap.interval(bootstrap.Users(np.arange(len(label)), 300, seed=1).auc(label, score), 0.95)
    assert clustered is not None
    assert apart is not None
    assert clustered.high - clustered.low > 2 * (apart.high - apart.low)


def test_an_interval_over_one_class_is_none() -> None:
    users = bootstrap.Users(np.arange(5), 20, seed=1)
    samples = users.auc(np.ones(5, dtype=int), np.arange(5.0))
    assert np.isnan(samples).all()
    assert bootstrap.interval(samples, 0.95) is None


def test_an_interval_over_seeds_counts_their_luck_too() -> None:
    """Trainings that agree leave the users' spread as it is; of those that do not, it is added to it."""
    users = np.random.default_rng(0).normal(0, 0.001, 4000)
    agreeing = np.stack([users, users, users])
    assert np.allclose(bootstrap.over_seeds(agreeing, 1), users)
    luck = np.array([-0.01, 0.0, 0.01])
    spread = bootstrap.over_seeds(agreeing + luck[:, None], 1).std()
    assert spread == pytest.approx(np.hypot(users.std(), luck.std() / np.sqrt(3)), rel=0.05)
    assert np.array_equal(
        bootstrap.over_seeds(agreeing + luck[:, None], 1), bootstrap.over_seeds(agreeing + luck[:, None], 1)
    )
