"""Metrics against scikit-learn, against cases worked out by hand, and against what must hold of any scores."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from dti_pipeline.evaluation import metrics
from dti_pipeline.evaluation.report import Slice


def scores(seed: int = 0, n: int = 500, digits: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities with many ties, users of uneven size."""
    generator = np.random.default_rng(seed)
    probability = generator.random(n).round(digits)
    label = (generator.random(n) < probability).astype(np.int8)
    return label, probability, (generator.random(n) ** 2 * 40).astype(np.int64)


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_figures_equal_scikit_learns(digits: int) -> None:
    label, p, _ = scores(1, digits=digits)
    assert metrics.auc(label, p) == pytest.approx(sk.roc_auc_score(label, p), abs=1e-12)
    clipped = np.clip(p, metrics.CLIP, 1 - metrics.CLIP)
    assert metrics.log_loss(label, p) == pytest.approx(sk.log_loss(label, clipped), abs=1e-9)
    assert metrics.brier(label, p) == pytest.approx(sk.brier_score_loss(label, p), abs=1e-12)
    assert metrics.f1(label, p) == pytest.approx(sk.f1_score(label, p >= 0.5), abs=1e-12)
    assert metrics.accuracy(label, p) == pytest.approx(sk.accuracy_score(label, p >= 0.5), abs=1e-12)


def test_auc_counts_a_tie_as_half() -> None:
    # Pairs: (0.5 against 0.5) 1/2, (0.5 against 0.1) 1, (0.9 against both) 2: 3.5 of 4.
    assert metrics.auc(np.array([0, 0, 1, 1]), np.array([0.5, 0.1, 0.5, 0.9])) == 3.5 / 4


@pytest.mark.parametrize("label", [[0, 0, 0], [1, 1, 1], []])
def test_over_one_class_or_nothing_an_auc_is_none_and_nothing_crashes(label: list[int]) -> None:
    y, p = np.array(label, dtype=np.int8), np.full(len(label), 0.4)
    figures = metrics.summary(y, p, np.zeros(len(label), dtype=np.int64), 10)
    assert figures.auc is figures.gauc is figures.uauc is figures.ne is None
    assert metrics.roc(y, p) == []
    assert not any(isinstance(v, float) and math.isnan(v) for v in vars(figures).values())


labelled = st.lists(st.tuples(st.booleans(), st.integers(-50, 50)), min_size=2, max_size=60).filter(
    lambda rows: len({click for click, _ in rows}) == 2
)


@given(labelled)
@settings(deadline=None)
def test_auc_depends_on_order_only_and_turns_over_with_it(rows: list[tuple[bool, int]]) -> None:
    label = np.array([click for click, _ in rows], dtype=np.int8)
    score = np.array([value for _, value in rows], dtype=np.float64)
    auc = metrics.auc(label, score)
    assert auc is not None
    assert 0 <= auc <= 1
    assert metrics.auc(label, np.exp(score / 10)) == auc
    assert metrics.auc(label, -score) == pytest.approx(1 - auc, abs=1e-12)
    assert metrics.auc(1 - label, score) == pytest.approx(1 - auc, abs=1e-12)
    assert metrics.auc(label[::-1], score[::-1]) == auc


def test_gauc_weighs_users_by_targets_uauc_does_not_and_both_skip_one_class_users() -> None:
    user = np.array([3, 3, 7, 7, 7, 7, 9, 9])
    label = np.array([0, 1, 1, 0, 0, 1, 1, 1])
    score = np.array([0.1, 0.2, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    # User 3: 1. User 7: the click at 0.1 wins no pair, that at 0.4 both: 1/2. User 9 has clicks only.
    found = metrics.group_auc(label, score, user)
    assert found == metrics.GroupedAuc((2 * 1 + 4 * 0.5) / 6, (1 + 0.5) / 2, users=2, users_skipped=1, targets=6)


def test_gauc_equals_a_loop_over_users() -> None:
    label, p, user = scores(3)
    total = weight = 0.0
    for u in np.unique(user):
        rows = user == u
        if 0 < label[rows].mean() < 1:
            total += rows.sum() * sk.roc_auc_score(label[rows], p[rows])
            weight += rows.sum()
    assert metrics.group_auc(label, p, user).value == pytest.approx(total / weight, abs=1e-12)


def test_ne_of_the_judged_targets_own_rate_is_one() -> None:
    label = np.array([1, 0, 0, 0, 1, 0, 0, 0])
    assert metrics.normalised_entropy(label, np.full(8, 0.25)) == pytest.approx(1.0)
    assert metrics.normalised_entropy(label, np.full(8, 0.5)) == pytest.approx(math.log(2) / 0.5623351446188083)


def test_a_certain_mistake_leaves_the_log_loss_finite() -> None:
    assert metrics.log_loss(np.array([1, 0]), np.array([0.0, 0.0])) == pytest.approx(
        -math.log(metrics.CLIP) / 2, rel=1e-6
    )


def test_calibration_bins_have_equal_mass_and_ties_stay_together() -> None:
    label, p, _ = scores(4, n=1000, digits=9)
    curve = metrics.calibration(label, p, 10)
    assert [one.count for one in curve] == [100] * 10
    assert [one.predicted for one in curve] == sorted(one.predicted for one in curve)
    assert metrics.calibration(label, np.full(1000, 0.5), 10) == [metrics.Bin(0.5, pytest.approx(label.mean()), 1000)]


def test_ece_by_hand() -> None:
    label, p = np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.6, 0.8])
    # Two bins: predicted 0.2 and 0.7, observed 0 and 1.
    assert metrics.expected_calibration_error(metrics.calibration(label, p, 2)) == pytest.approx((0.2 + 0.3) / 2)


@given(labelled, st.integers(2, 50))
@settings(deadline=None)
def test_a_thinned_roc_keeps_its_ends_and_never_falls(rows: list[tuple[bool, int]], points: int) -> None:
    label = np.array([click for click, _ in rows], dtype=np.int8)
    curve = metrics.roc(label, np.array([value for _, value in rows]), points)
    assert len(curve) <= points
    assert curve[0] == (0.0, 0.0)
    assert curve[-1] == (1.0, 1.0)
    assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(curve))


def test_the_whole_roc_encloses_the_auc() -> None:
    label, p, _ = scores(5)
    x, y = zip(*metrics.roc(label, p, 10_000), strict=True)
    assert np.trapezoid(y, x) == pytest.approx(metrics.auc(label, p), abs=1e-12)


def test_slices_cover_every_target_once_and_name_the_cold_bucket() -> None:
    label, p, _ = scores(6)
    value = np.random.default_rng(6).integers(0, 700, len(label))
    value[:3] = 0
    found = metrics.slices(label, p, value, metrics.POPULARITY_BUCKETS)
    assert [s.bucket for s in found] == ["0", "1-4", "5-19", "20-99", "100-499", "500+"]
    assert sum(s.count for s in found) == len(label)
    middle = (value >= 100) & (value < 500)
    assert found[4] == Slice(
        "100-499",
        int(middle.sum()),
        pytest.approx(sk.roc_auc_score(label[middle], p[middle])),
        metrics.log_loss(label[middle], p[middle]),
    )


def test_a_slice_of_one_class_has_no_auc() -> None:
    found = metrics.slices(np.array([1, 1, 0, 1]), np.full(4, 0.5), np.array([0, 0, 30, 30]), (0, 10))
    assert [(s.bucket, s.count, s.auc) for s in found] == [("0-9", 2, None), ("10+", 2, 0.5)]
