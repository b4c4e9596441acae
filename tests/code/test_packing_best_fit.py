"""Prompts to rows: exactly best-fit decreasing, never above the row, deterministic, and mixed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.packing.best_fit import pack


def best_fit_decreasing(lengths: list[int], row_length: int) -> list[int]:
    """Room left in each row, prompt after prompt: the tightest row that still has room, else a new one."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [i for i, room in enumerate(rooms) if room >= length]
        if fits:
            rooms[min(fits, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(row_length - length)
    return sorted(rooms)


@given(row_length=st.integers(8, 60), data=st.data())
@settings(max_examples=300, deadline=None)
def test_rows_are_those_of_best_fit_decreasing(row_length: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, row_length), min_size=1, max_size=60))
    packed = pack(np.array(lengths), row_length, seed=data.draw(st.integers(0, 5)))
    filled = np.bincount(packed.row, weights=lengths, minlength=packed.rows)
    assert len(filled) == packed.rows
    assert (filled > 0).all()
    assert (filled <= row_length).all()
    assert sorted((row_length - filled).astype(int).tolist()) == best_fit_decreasing(lengths, row_length)


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 500)
    first, again, other = (pack(lengths, 100, seed) for seed in (1, 1, 2))
    assert (first.row == again.row).all()
    assert first.rows == again.rows == other.rows
    assert (first.row != other.row).any()


def test_users_mix_and_rows_are_not_ordered_by_length() -> None:
    """Prompts come user after user; rows of one user, or a training from long to short, would learn worse."""
    user = np.repeat(np.arange(50), 20)
    lengths = np.random.default_rng(1).integers(10, 40, len(user))
    packed = pack(lengths, 200, seed=7)
    in_row = [user[packed.row == row] for row in range(packed.rows)]
    of_one_user = sum(len(set(users.tolist())) == 1 for users in in_row if len(users) > 1)
    assert of_one_user < 0.02 * packed.rows
    longest = np.array([lengths[packed.row == row].max() for row in range(packed.rows)])
    assert abs(np.corrcoef(np.arange(packed.rows), longest)[0, 1]) < 0.2


def test_rows_are_nearly_full() -> None:
    """Padding near 0 is a promise of the method; a fifth of a row is the hardest size of the usual ones."""
    lengths = np.random.default_rng(2).integers(20, 1024, 20_000)
    packed = pack(lengths, 1024, seed=7)
    assert lengths.sum() / (packed.rows * 1024) > 0.97
    short = np.random.default_rng(3).integers(150, 260, 20_000)  # single-target prompts
    assert short.sum() / (pack(short, 1024, seed=7).rows * 1024) > 0.94


@pytest.mark.parametrize("lengths", [[], [7]])
def test_no_prompt_and_one_prompt(lengths: list[int]) -> None:
    packed = pack(np.array(lengths, np.int64), 10, seed=0)
    assert packed.rows == len(lengths)
    assert packed.row.tolist() == [0] * len(lengths)
