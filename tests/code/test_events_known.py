"""What a row knows is what a server would have known, and no file's order tells more."""

from __future__ import annotations

import itertools
import random
from hashlib import md5
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dti_pipeline.events.ingest import ingest
from dti_pipeline.paths import Paths
from tests.code.raw_logs import HEADER, quarantine, rows, settings

#: (user, time, request of the user): few of each, so that ties, and requests that overlap in time, are common.
LOG = st.lists(st.tuples(st.integers(1, 2), st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=30)
DELAYS = st.sampled_from([None, 0, 0.5, 1, 3, 100])
PROPERTY = hypothesis(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
Row = dict[str, Any]


def read(home: Paths, log: list[tuple[int, int, int]], ids: bool, clock: bool, **split: Any) -> list[Row]:
    """The interactions of a log whose items are its lines, and what their lines say."""
    lines = [f"{user},{line},4,{time},u{user}r{request}" for line, (user, time, request) in enumerate(log)]
    (home.home / "log.csv").write_text("\n".join([f"{HEADER},request", *lines, ""]))
    columns = {"timestamp": "timestamp" if clock else None, "request_id": "request" if ids else None}
    ingest(settings(home.home / "log.csv", columns=columns, split=split), home)
    names = ("user_id", "item_id", "position", "request", "known", "split")
    found = [dict(zip(names, row, strict=True)) for row in rows(home, ", ".join(names))]
    for row in found:
        row["line"] = int(row["item_id"])
        _, row["time"], row["id"] = log[row["line"]]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ids", [True, False], ids=["request ids", "no ids"])
@pytest.mark.parametrize("ties", ["together", "ordered"])
@PROPERTY
@given(log=LOG, delay=DELAYS, until=st.sampled_from([None, "test_start"]))
def test_a_row_knows_what_the_loops_know(
    home: Paths, ids: bool, ties: str, log: list[tuple[int, int, int]], delay: float | None, until: str | None
) -> None:
    found = read(home, log, ids, True, feedback_delay=delay, ties=ties, feedback_until=until)
    for user in {row["user_id"] for row in found}:
        history = [row for row in found if row["user_id"] == user]
        requests: dict[Any, list[Row]] = {}
        for row in history:
            key = row["id"] if ids else row["time"] if ties == "together" else row["line"]
            requests.setdefault(key, []).append(row)
        assert list(itertools.chain(*requests.values())) == history, "the rows of a request are not neighbours"

        before = 0
        shown: list[list[Row]] = []  # earlier requests
        for request in requests.values():
            begins = min(row["time"] for row in request)
            assert not shown or min(row["time"] for row in shown[-1]) <= begins
            hashes = [(md5(row["item_id"].encode()).hexdigest(), row["line"]) for row in request]
            assert hashes == sorted(hashes)
            known, blocked = 0, False
            for earlier in shown:
                latest = max(row["time"] for row in earlier)
                in_time = latest + (delay or 0) <= begins if delay is not None or ties == "together" else True
                blocked |= not in_time or (ties == "together" and latest >= begins)
                blocked |= until is not None and earlier[0]["split"] == "test"
                known += 0 if blocked else len(earlier)
            for row in request:
                assert (row["request"], row["known"]) == (before, known), row
            assert len({row["split"] for row in request}) == 1
            shown.append(request)
            before += len(request)


@pytest.mark.slow
@pytest.mark.parametrize("ids", [True, False], ids=["request ids", "no ids"])
@PROPERTY
@given(log=LOG, delay=DELAYS, seed=st.integers(0, 99))
def test_the_order_of_the_file_tells_nothing(
    home: Paths, ids: bool, log: list[tuple[int, int, int]], delay: float | None, seed: int
) -> None:
    """The same lines in any order, each item's line known by its item: the same history."""
    lines = [f"{user},{item},4,{time},u{user}r{request}" for item, (user, time, request) in enumerate(log)]
    columns = {"request_id": "request"} if ids else {}
    made = []
    for _ in range(2):
        (home.home / "log.csv").write_text("\n".join([f"{HEADER},request", *lines, ""]))
        ingest(settings(home.home / "log.csv", columns=columns, split={"feedback_delay": delay}), home)
        made.append((home.events / "interactions.parquet").read_bytes())
        random.Random(seed).shuffle(lines)
    assert made[0] == made[1]


def test_without_a_clock_each_row_is_a_request_and_knows_all_before_it(home: Paths) -> None:
    found = read(home, [(1, 5, 0), (1, 5, 0), (2, 5, 1), (1, 4, 0)], ids=False, clock=False)
    assert [(row["line"], row["position"], row["request"], row["known"]) for row in found] == [
        (0, 0, 0, 0), (1, 1, 1, 1), (3, 2, 2, 2), (2, 0, 0, 0),
    ]  # fmt: skip


def test_without_a_clock_a_request_stands_where_its_first_row_does(home: Paths) -> None:
    found = read(home, [(1, 0, 1), (1, 0, 2), (1, 0, 1), (1, 0, 3)], ids=True, clock=False)
    assert [(row["id"], row["request"], row["known"]) for row in found] == [(1, 0, 0), (1, 0, 0), (2, 2, 2), (3, 3, 3)]


def test_a_click_written_last_in_its_request_stands_anywhere(home: Paths) -> None:
    """The log that every model solved: each request five impressions of one time stamp, the click behind the others."""
    draw = random.Random(3)
    body = "".join(
        f"{user},{draw.randrange(10**6)},{5 if impression == 4 else 1},{time}\n"
        for user in range(20)
        for time in range(30)
        for impression in range(5)
    )
    (home.home / "log.csv").write_text(f"{HEADER}\n{body}")
    ingest(settings(home.home), home)
    places = rows(home, "position - request, count(*) FILTER (label = 1)", "GROUP BY 1 ORDER BY 1")
    assert [place for place, _ in places] == list(range(5))
    assert all(80 < clicks < 160 for _, clicks in places), places  # 120 each, were they drawn
    assert rows(home, "bool_and(known = request AND request % 5 = 0)") == [(True,)]


def test_a_logs_own_split_is_taken_as_it_is_and_unknown_values_are_quarantined(home: Paths) -> None:
    parts = ["Train", "train", " valid", "val", "dev", "validation", "test", "holdout", ""]
    lines = [f"1,i{place},4,{place},{part}" for place, part in enumerate(parts)]
    (home.home / "log.csv").write_text("\n".join([f"{HEADER},part", *lines, ""]))
    report = ingest(settings(home.home, columns={"split": "part"}, split={"rule": "column"}), home)
    assert rows(home, "item_id, split") == [
        *((f"i{place}", "train") for place in (0, 1)), *((f"i{place}", "validation") for place in (2, 3, 4, 5)),
        ("i6", "test"),
    ]  # fmt: skip
    assert report.reasons == {"split missing": 1, "split not train, validation or test": 1}
    assert [row[:3] for row in quarantine(home)] == [
        ("log.csv", 9, "split not train, validation or test"), ("log.csv", 10, "split missing"),
    ]  # fmt: skip


def test_a_row_without_the_request_that_others_have_is_quarantined(home: Paths) -> None:
    (home.home / "log.csv").write_text(f"{HEADER},request\n1,a,4,5,q\n1,b,4,5,\n1,a,4,5,q\n1,a,4,5,r\n")
    report = ingest(settings(home.home, columns={"request_id": "request"}), home)
    assert (report.reasons, report.duplicates) == ({"request id missing": 1}, 1)
    assert rows(home, "item_id, request, known") == [("a", 0, 0), ("a", 1, 0)]  # two requests of one second


def test_no_request_is_parted_by_a_split_of_each_users_order(home: Paths) -> None:
    """Requests of three rows, the last of 29 has two: a tenth of 29 is two rows, so that it alone fits."""
    for count, expected in ((30, (24, 3, 3)), (29, (27, 0, 2))):
        lines = "".join(f"1,{place},4,{place // 3}\n" for place in range(count))
        (home.home / "log.csv").write_text(f"{HEADER}\n{lines}")
        report = ingest(settings(home.home / "log.csv"), home)
        assert tuple(split.rows for split in report.splits.values()) == expected
