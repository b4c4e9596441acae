"""What is judged never comes before what is learnt from, and no context is later than its target."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.paths import Paths

ORDER = {"train": 0, "validation": 1, "test": 2}
#: (user, item, time): few users and few times, so that ties and short histories are common.
LOG = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(0, 15)), min_size=1, max_size=80)
PROPERTY = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def split(home: Paths, log: list[tuple[int, int, int]], **params: Any) -> list[dict[str, Any]]:
    (home.home / "log.csv").write_text(
        "user_id,item_id,rating,timestamp\n" + "".join(f"{u},{i},4,{t}\n" for u, i, t in log)
    )
    raw = {"events": {"source": "table", "path": "log.csv"}, "split": params}
    ingest(from_plain(Config, raw), home)
    table = duckdb.sql(f"FROM '{home.events}/interactions.parquet'").arrow()
    return (table.read_all() if hasattr(table, "read_all") else table).to_pylist()


def histories(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    users: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        users.setdefault(row["user_id"], []).append(row)
    return users


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["global_time", "user_order"])
@PROPERTY
@given(log=LOG, min_history=st.integers(0, 3))
def test_no_context_row_is_later_than_its_target(
    home: Paths, rule: str, log: list[tuple[int, int, int]], min_history: int
) -> None:
    try:
        rows = split(home, log, rule=rule, min_history=min_history)
    except InputError:
        reject()  # too short to leave a row to train on: said so in another test
    assert [list(user) for user in {row["user_id"]: None for row in rows}] == [
        list(user) for user in sorted(histories(rows), key=int)
    ]
    for history in histories(rows).values():
        assert [row["position"] for row in history] == list(range(len(history)))
        for context, target in itertools.pairwise(history):
            assert context["timestamp"] <= target["timestamp"]
            assert ORDER[context["split"]] <= ORDER[target["split"]]


@pytest.mark.slow
@PROPERTY
@given(log=LOG, min_history=st.integers(0, 3))
def test_global_time_parts_all_users_by_one_clock(
    home: Paths, log: list[tuple[int, int, int]], min_history: int
) -> None:
    try:
        rows = split(home, log, rule="global_time", min_history=min_history)
    except InputError:
        reject()
    for earlier, later in (("train", "validation"), ("validation", "test"), ("train", "test")):
        before = [row["timestamp"] for row in rows if row["split"] == earlier]
        after = [row["timestamp"] for row in rows if row["split"] == later]
        assert not before or not after or max(before) < min(after)
    eligible = sorted(row["timestamp"] for row in rows if row["position"] >= min_history)
    test = [row for row in rows if row["split"] == "test" and row["position"] >= min_history]
    # The cut lies at the 90 % quantile; rows of that very second all go to the test.
    cut = eligible[math.floor(len(eligible) * 0.9 + 1e-9)]
    assert len(test) == sum(time >= cut for time in eligible)


def test_global_time_shares_are_those_asked_for(home: Paths) -> None:
    rows = split(home, [(t % 7, t, t) for t in range(1000)], rule="global_time", min_history=5)
    eligible = [row["split"] for row in rows if row["position"] >= 5]
    assert len(eligible) == 1000 - 7 * 5
    assert (eligible.count("train"), eligible.count("validation"), eligible.count("test")) == (772, 96, 97)
    # Rows without enough history are parted by the same clock: here they are all early.
    assert {row["split"] for row in rows if row["position"] < 5} == {"train"}


@pytest.mark.parametrize(
    ("length", "expected"), [(5, (5, 0, 0)), (10, (8, 1, 1)), (19, (17, 1, 1)), (20, (16, 2, 2)), (101, (81, 10, 10))]
)
def test_user_order_takes_each_users_last_rows_rounded_down(
    home: Paths, length: int, expected: tuple[int, int, int]
) -> None:
    rows = split(home, [(user, i, i) for i in range(length) for user in (1, 2)], rule="user_order", min_history=0)
    for history in histories(rows).values():
        splits = [row["split"] for row in history]
        assert (splits.count("train"), splits.count("validation"), splits.count("test")) == expected
        assert splits == sorted(splits, key=ORDER.__getitem__)


def test_other_shares(home: Paths) -> None:
    rows = split(
        home, [(1, i, i) for i in range(100)], rule="user_order", min_history=0, validation_share=0.29, test_share=0.07
    )
    splits = [row["split"] for row in rows]
    assert (splits.count("train"), splits.count("validation"), splits.count("test")) == (64, 29, 7)


@pytest.mark.parametrize("rule", ["user_order", "global_time"])
def test_the_last_fit_learns_from_everything_before_the_same_test_rows(home: Paths, rule: str) -> None:
    log = [(user, i, 10 * i + user) for user in (1, 2) for i in range(100)]
    chosen = split(home, log, rule=rule, min_history=0)
    last = split(home, log, rule=rule, min_history=0, validation_share=0)
    assert [row["split"].replace("validation", "train") for row in chosen] == [row["split"] for row in last]


def test_global_time_needs_a_clock(home: Paths) -> None:
    (home.home / "ratings.dat").write_text("1::1::5\n1::2::5\n")
    raw = {"events": {"source": "movielens", "path": str(home.home)}, "split": {"min_history": 0}}
    with pytest.raises(InputError, match=r"has no timestamps.*use split.rule=user_order"):
        ingest(from_plain(Config, raw), home)


def test_a_log_too_short_to_train_on_is_said_so(home: Paths) -> None:
    with pytest.raises(InputError, match=r"split.min_history"):
        split(home, [(1, i, i) for i in range(5)], min_history=5)


def test_label_is_above_the_threshold(home: Paths, tmp_path: Path) -> None:
    body = "".join(f"1,{i},{rating},{i}\n" for i, rating in enumerate((1, 3, 3.5, 4, 5)))
    (home.home / "log.csv").write_text("user_id,item_id,rating,timestamp\n" + body)
    for threshold, expected in ((3.0, [0, 0, 1, 1, 1]), (4.0, [0, 0, 0, 0, 1])):
        split_params = {"label_threshold": threshold, "min_history": 0, "rule": "user_order"}
        ingest(from_plain(Config, {"events": {"source": "table", "path": "log.csv"}, "split": split_params}), home)
        found = duckdb.sql(f"SELECT label FROM '{home.events}/interactions.parquet'").fetchall()
        assert [label for (label,) in found] == expected
