"""Histories to prompts: every target in exactly one, within the row, and the cuts that the method's words ask for."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.errors import InputError
from dti_pipeline.packing import prompts
from dti_pipeline.packing.prompts import Prompts, cut

#: A log: for each user, for each interaction, (tokens of text and label, whether it is a target).
users = st.lists(st.lists(st.tuples(st.integers(2, 9), st.booleans()), min_size=1, max_size=14), min_size=1, max_size=6)


def cut_log(
    log: list[list[tuple[int, bool]]], n: int, k: int | None, row_length: int, prefix: list[int] | int = 0,
    seen: list[list[int]] | None = None,
) -> Prompts:  # fmt: skip
    """``prefix``: tokens that open the prompts of each user, or of all."""
    rows = [row for user in log for row in user]
    opening = prefix if isinstance(prefix, int) else np.repeat(prefix, [len(user) for user in log])
    position = np.array([i for user in log for i in range(len(user))], np.int32)
    return cut(
        np.array([target for _, target in rows], bool),
        position,
        position if seen is None else np.array([i for user in seen for i in user], np.int32),
        np.array([length for length, _ in rows], np.int32),
        n, k, row_length, opening,
    )[0]  # fmt: skip


def by_hand(
    log: list[list[tuple[int, bool]]], n: int, k: int | None, row_length: int, prefix: list[int]
) -> list[tuple[int, ...]]:
    """(start, first target, stop, tokens) of each prompt, target after target."""
    found = []
    base = 0
    for user, opening in zip(log, prefix, strict=False):
        i = 0
        while i < len(user):
            if not user[i][1]:
                i += 1
                continue
            start = max(0, i - n)
            tokens = opening + sum(length for length, _ in user[start:i])
            stop = i
            while stop < len(user) and user[stop][1] and stop - i != k and tokens + user[stop][0] + 1 <= row_length:
                tokens += user[stop][0] + 1
                stop += 1
            found.append((base + start, base + i, base + stop, tokens))
            i = stop
        base += len(user)
    return found


@given(log=users, n=st.integers(0, 20), k=st.one_of(st.none(), st.integers(1, 6)),
       prefix=st.one_of(st.integers(0, 3).map(lambda one: [one] * 6), st.tuples(*[st.integers(0, 5)] * 6).map(list)),
       spare=st.integers(0, 60))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_prompts_are_those_cut_by_hand(
    log: list[list[tuple[int, bool]]], n: int, k: int | None, prefix: list[int], spare: int
) -> None:
    longest = max(prefix) + 9 * (min(n, 14) + 1) + 1
    row_length = longest + spare
    found = cut_log(log, n, k, row_length, prefix[: len(log)])
    spans = list(zip(*(x.tolist() for x in (found.start, found.first_target, found.stop, found.length)), strict=True))
    assert spans == by_hand(log, n, k, row_length, prefix)
    covered = [row for _, first, stop, _ in spans for row in range(first, stop)]
    flags = [target for user in log for _, target in user]
    assert covered == [row for row, target in enumerate(flags) if target], "every target once"
    assert found.targets == sum(flags)
    assert (found.length <= row_length).all()


@given(log=users, draw=st.randoms(use_true_random=False), known=st.booleans(), n=st.integers(0, 6),
       k=st.one_of(st.none(), st.integers(1, 6)), spare=st.integers(0, 60))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_requests_stay_whole_and_each_prompt_is_paid_for_what_stands_in_it(
    log: list[list[tuple[int, bool]]], draw: Random, known: bool, n: int, k: int | None, spare: int
) -> None:
    """Also where rows see less than all rows before their request."""
    seen = [_seen(len(user), draw, known) for user in log]
    row_length = 9 * (n + 1) + 1 + spare
    found = cut_log(log, n, k, row_length, seen=seen)
    base, covered = 0, []
    spans = list(zip(*(x.tolist() for x in (found.start, found.first_target, found.stop, found.length)), strict=True))
    for user, sees in zip(log, seen, strict=True):
        mine = [[x - base for x in span[:3]] + [span[3]] for span in spans if base <= span[1] < base + len(user)]
        for start, first, stop, length in mine:
            assert start == max(0, sees[first] - n)
            context = [i for i in range(start, first) if i < sees[stop - 1]]
            assert length == sum(user[i][0] for i in context) + sum(user[i][0] + 1 for i in range(first, stop))
            assert length <= row_length
            parted = stop < len(user) and user[stop][1] and sees[stop] == sees[stop - 1]
            assert not parted or sees[first] == sees[stop], "only the first request may be parted"
            assert k is None or stop - first <= k or sees[first] == sees[stop - 1]
            covered += [base + i for i in range(first, stop)]
        base += len(user)
    flags = [target for user in log for _, target in user]
    assert covered == [row for row, target in enumerate(flags) if target], "every target once"


def _seen(rows: int, draw: Random, known: bool) -> list[int]:
    """Rows in each row's context: those before its request of one to four rows, or fewer."""
    seen: list[int] = []
    while len(seen) < rows:
        least = seen[-1] if seen else 0
        seen += [draw.randint(least, len(seen)) if known else len(seen)] * min(draw.randint(1, 4), rows - len(seen))
    return seen


def test_a_context_longer_than_any_history_is_the_whole_history() -> None:
    log = [[(3, i >= 2) for i in range(8)], [(3, i >= 2) for i in range(5)]]
    found = cut_log(log, 1000, None, 64)
    assert found.start.tolist() == [0, 8]
    assert found.length.tolist() == [8 * 3 + 6, 5 * 3 + 3]


def test_a_target_that_does_not_fit_names_the_parameter_and_a_row_length_that_would_do() -> None:
    log = [[(50, i == 6) for i in range(7)]]
    with pytest.raises(
        InputError, match=r"`packing\.row_length` is 256, but the longest prompt .* takes 306 tokens"
    ) as e:
        cut_log(log, 5, 1, 256, prefix=5)
    assert "raise it to 384" in str(e.value)
    assert len(cut_log(log, 5, 1, 384, prefix=5)) == 1


def test_a_log_without_targets_has_no_prompts() -> None:
    assert len(cut_log([[(3, False)] * 4], 2, 3, 64)) == 0


def test_prompts_of_one_target_are_cut_at_once_however_long_a_history_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with a million rows would otherwise take a million steps."""
    steps, fits = [], prompts._last_that_fits

    def counted(first: Any, *rest: Any) -> Any:
        steps.append(len(first))
        return fits(first, *rest)

    monkeypatch.setattr(prompts, "_last_that_fits", counted)
    position = np.arange(500, dtype=np.int32)
    seen, lengths = position // 2 * 2, np.full(500, 3, np.int32)  # two rows a request
    found, ended = cut(position >= 4, position, seen, lengths, 4, 1, 64)
    assert steps == [248]
    assert (len(found), found.targets, ended) == (248, 496, 0)
    assert (found.stop - found.first_target == 2).all()
    assert (found.start == found.first_target - 4).all()
