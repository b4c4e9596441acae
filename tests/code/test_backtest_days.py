"""Days of a backtest: every target is learnt once, on the day its label is known; its prompts are those of the log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.backtest import days as calendar
from dti_pipeline.backtest.days import DAY, MONDAY, Days
from dti_pipeline.config import BacktestConfig
from dti_pipeline.errors import InputError
from dti_pipeline.packing import prompts
from dti_pipeline.packing.some import cut_some
from dti_pipeline.packing.store import TokenStore, uniform_store

START = MONDAY + 1000 * 7 * DAY
HOUR = 3600


def store_of(sizes: list[list[int]], context: str = "shown") -> TokenStore:
    """Users with requests of these sizes, texts of 1 to 3 tokens; every second request knows all labels before it."""
    rows = sum(map(sum, sizes))
    position = np.concatenate([np.arange(sum(user)) for user in sizes]).astype(np.int32)
    begins = [np.cumsum([0, *user[:-1]]) for user in sizes]
    request = np.concatenate([np.repeat(b, user) for b, user in zip(begins, sizes, strict=True)]).astype(np.int32)
    known = [np.where(np.arange(len(b)) % 2, b, np.append(0, b[:-1])) for b in begins]
    return replace(
        uniform_store(1, rows, 2),
        tokens=np.arange(6, dtype=np.int32) + 4,
        offsets=np.array([0, 1, 3, 6]),
        text=(np.arange(rows) % 3).astype(np.int32),
        position=position,
        request=request,
        known=np.concatenate([np.repeat(k, user) for k, user in zip(known, sizes, strict=True)]).astype(np.int32),
        context=context,  # type: ignore[arg-type]
    )


logs = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), min_size=1, max_size=5)


@given(sizes=logs, context=st.sampled_from(["shown", "known"]), n=st.integers(0, 6),
       k=st.one_of(st.none(), st.integers(1, 5)), share=st.floats(0.1, 1), seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_prompts_of_some_targets_are_those_of_the_whole_log(
    sizes: list[list[int]], context: str, n: int, k: int | None, share: float, seed: int
) -> None:
    store = store_of(sizes, context)
    if seed % 2:  # users have texts, of 1 to 3 tokens
        store = replace(store, user_text=(np.cumsum(store.position == 0) % 3).astype(np.int32))
    draw = np.random.default_rng(seed).random(len(store.position)) < share
    draw[0] = True
    whole, _ = prompts.cut(draw, store.position, store.seen, store.lengths(), n, k, 64, store.opening())
    some = cut_some(store, np.flatnonzero(draw), n, k, 64)
    for name in ("start", "first_target", "stop", "length"):
        assert getattr(some, name).tolist() == getattr(whole, name).tolist(), name


def cut(store: TokenStore, time: np.ndarray, delay: float = 0.0, min_history: int = 0, **keys: object) -> Days:
    return calendar.cut(BacktestConfig(**keys), store, time.astype(np.float64), delay, min_history)  # type: ignore[arg-type]


@given(sizes=st.lists(st.lists(st.integers(1, 3), min_size=12, max_size=20), min_size=3, max_size=6),
       delay=st.integers(0, 60), min_history=st.integers(0, 3), seed=st.integers(0, 99))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_each_target_is_learnt_once_on_the_day_its_label_is_known(
    sizes: list[list[int]], delay: int, min_history: int, seed: int
) -> None:
    store, draw = store_of(sizes), np.random.default_rng(seed)
    # A day has requests of everybody; rows of a request are shown within an hour.
    time = np.concatenate(
        [np.repeat(START + DAY * np.arange(len(user)) // 2 + draw.integers(10 * HOUR), user) for user in sizes]
    )
    time = time + draw.integers(HOUR, size=len(time))
    days = cut(store, time, delay * HOUR, min_history, warmup_share=0.6)
    learnt = np.concatenate([days.to_learn(day) for day in range(days.first, days.last)])
    assert len(np.unique(learnt)) == len(learnt)
    request = (np.arange(len(time)) - store.position) + store.request
    latest = {one: time[request == one].max() for one in np.unique(request)}
    end = MONDAY + days.last * DAY  # the day that is only judged begins
    targets = np.flatnonzero(store.request >= min_history)
    assert set(learnt) == {row for row in targets if latest[request[row]] + delay * HOUR < end}
    for day in range(days.first, days.last):
        begins = MONDAY + (day + 1) * DAY
        assert all(latest[request[row]] + delay * HOUR < begins for row in days.to_learn(day))
        assert all(begins <= time[request == request[row]].min() < begins + DAY for row in days.to_judge(day))


def hourly(days: int) -> tuple[TokenStore, np.ndarray]:
    """One user, a row an hour."""
    return uniform_store(1, 24 * days, 3), START + HOUR * np.arange(24 * days)


def test_days_have_their_dates_and_weeks_begin_on_monday() -> None:
    store, time = hourly(21)
    days = cut(store, time, period_days=7.0, warmup_share=0.0)
    assert [days.name(day) for day in (days.first, days.last)] == ["1989-03-06", "1989-03-20"]
    assert len(days.to_learn(days.first)) == len(days.to_judge(days.first)) == 168
    assert cut(store, time, period_days=0.5).name(2 * (START - MONDAY) // DAY + 1) == "1989-03-06T12:00"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"period_days": 30.0},
            "a backtest needs two periods, one to learn and one to judge on: the log's last target",
        ),
        ({"first_day": "1989-03-09"}, "two periods.*is of 1989-03-09, and learning begins with 1989-03-09"),
        ({"first_day": "1989-03-05"}, "no target is known by the end of 1989-03-05: set a later `backtest.first_day`"),
        ({"first_day": "spring"}, "`backtest.first_day` must be a date such as 2013-05-01, not 'spring'"),
        ({"min_history": 500}, "no target: none has split.min_history = 500 rows before its request"),
    ],
)
def test_a_log_that_cannot_be_told_by_days_is_refused(changed: dict[str, object], sentence: str) -> None:
    store, time = hourly(4)
    with pytest.raises(InputError, match=sentence):
        cut(store, time, **changed)  # type: ignore[arg-type]


def test_a_day_without_targets_is_refused_by_name() -> None:
    store, time = hourly(4)
    time[48:] += 2 * DAY
    with pytest.raises(InputError, match=r"1989-03-08 has no targets to judge on: make params key `backtest\.period_d"):
        cut(store, time)
