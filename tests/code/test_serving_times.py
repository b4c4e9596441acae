"""Times in requests: what a history knows of itself, and times that cannot be."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dti_pipeline.errors import InputError
from dti_pipeline.packing.report import Knowledge
from dti_pipeline.paths import Paths
from dti_pipeline.serving import requests
from dti_pipeline.serving.knowledge import in_order, known_rows
from tests.code.test_events_known import read as interactions


def known_by_hand(
    rule: Knowledge, labels: list[int | None], times: list[float], now: float
) -> tuple[list[int], list[int]]:
    """First row of the request, and labels known, of each row and of the candidates, in plain words."""
    asked = [*times, now]
    request, known = [], []
    for i, time in enumerate(asked):
        together = [j for j in range(i) if rule.ties == "together" and asked[j] == time]
        first = together[0] if together else i
        told = 0
        while told < first and labels[told] is not None and asked[told] + (rule.feedback_delay or 0) <= time:
            told += 1
        request.append(first)
        known.append(told)
    return request, known


@given(
    steps=st.lists(st.sampled_from([0, 0, 1, 30, 4000]), max_size=12),
    unknown=st.integers(0, 12),
    delay=st.sampled_from([None, 0.0, 1.0, 60.0, 5000.0]),
    ties=st.sampled_from(["together", "ordered"]),
    after=st.sampled_from([0, 1, 10_000]),
)
@settings(max_examples=200, deadline=None)
def test_a_request_s_rows_know_what_the_log_s_would(
    steps: list[int], unknown: int, delay: float | None, ties: Any, after: int
) -> None:
    times = [float(1_000 + sum(steps[: i + 1])) for i in range(len(steps))]
    labels = [1 if i < unknown else None for i in range(len(steps))]
    now = (times[-1] if times else 0.0) + after
    rule = Knowledge(delay, "shown", ties)
    found = known_rows(rule, labels, times, now)
    assert tuple(x.tolist() for x in found) == known_by_hand(rule, labels, times, now)


TIMED = {"item_id": "1", "label": 1, "timestamp": 100}


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"history": [TIMED, {**TIMED, "timestamp": 99}]}, r"history\[1\].timestamp is 99, before that of the entry"),
        (
            {"history": [TIMED, {"item_id": "2", "label": 1}]},
            r"history\[1\].timestamp is missing, though other entries",
        ),
        ({"history": [TIMED], "timestamp": 99}, "key timestamp is 99, before the last of its history, 100"),
        ({"history": [TIMED], "timestamp": "now"}, "key timestamp must be a number of seconds, not 'now'"),
        ({"history": [{**TIMED, "timestamp": True}]}, r"history\[0\].timestamp must be a number of seconds, not True"),
        ({"history": [{**TIMED, "request_id": 1}, TIMED]}, r"history\[1\].request_id is missing, though other entries"),
        (
            {"history": [{**TIMED, "request_id": " "}]},
            r"history\[0\].request_id must be text or a whole number, not ' '",
        ),
        ({"history": [], "request_id": 1.5}, "key request_id must be text or a whole number, not 1.5"),
        (
            {"history": [{**TIMED, "request_id": "a"}, {**TIMED, "request_id": "b", "timestamp": 99}]},
            r"history\[1\].request_id is 'b', which begins at 99, before the request in front of it, 'a' at 100",
        ),
        ({"history": [{**TIMED, "request_id": "a"}], "timestamp": 99}, "key timestamp is 99, before the last"),
    ],
)
def test_times_that_cannot_be_are_one_sentence(request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        requests.parse({"candidates": [], **request_}, "request 0")


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_ids_of_requests_come_from_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    """A number with a point is the whole one, as in a log; an entry may be later than one of the next request."""
    entries = [
        TIMED | {"request_id": "7.0"},
        TIMED | {"request_id": "8"},
        TIMED | {"request_id": "7", "timestamp": 120},
    ]
    asked = {"request_id": "9", "timestamp": 110, "history": entries, "candidates": [{"item_id": "3"}]}
    path = tmp_path / f"asked.{ending}"
    if ending == "jsonl":
        path.write_text(json.dumps(asked | {"request_id": 9}))
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist([asked]), path)
    else:
        with path.open("w", newline="") as file:
            cells = {key: value if key == "request_id" else json.dumps(value) for key, value in asked.items()}
            csv.writer(file).writerows([cells.keys(), cells.values()])
    [found] = requests.read(path)
    assert (found.ids, found.request_id) == (("7", "8", "7"), "9")
    assert in_order(Knowledge(), found).ids in (("7", "7", "8"), ("8", "7", "7"))


#: (time, request): few of each, so that requests overlap and begin at one time.
SHOWN = st.lists(st.tuples(st.sampled_from([0, 3, 5, 8, 9.5, 9.7, 12]), st.integers(0, 6)), min_size=2, max_size=20)


@pytest.mark.slow
@given(log=SHOWN, delay=st.sampled_from([None, 0, 0.5, 3, 100]), clock=st.sampled_from([True, True, False]))
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_ids_tell_apart_is_served_as_the_log_has_it(
    home: Paths, log: list[tuple[float, int]], delay: float | None, clock: bool
) -> None:
    """Each request of a log, with all that began before it as a client has it, in the order of time."""
    delay = delay if clock else None
    read = [(1, time, request) for time, request in log]
    split = {"feedback_delay": delay, "rule": "user_order", "min_history": 0}
    rows = interactions(home, read, True, clock, **split)
    rule = Knowledge(delay, whole_seconds=not clock or all(float(time).is_integer() for time, _ in log))
    of: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        of.setdefault(row["id"], []).append(row)

    def begins(request: int) -> float:
        return min(row["time"] if clock else row["line"] for row in of[request])

    def shown(row: dict[str, Any], time: float) -> dict[str, Any]:
        return {"request_id": f"u1r{row['id']}"} | ({"timestamp": time} if clock else {})

    for request, [target, *_] in of.items():
        past = [row for row in rows if row["id"] != request and begins(row["id"]) <= begins(request)]
        past.sort(key=lambda row: (row["time"] if clock else 0, row["line"]))
        history = [{"item_id": row["item_id"], "label": 1} | shown(row, row["time"]) for row in past]
        asked = {"history": history, "candidates": [], **shown(target, begins(request))}
        found = in_order(rule, requests.parse(asked, "it"))
        first, known = known_rows(rule, found.labels, found.times, found.time, found.ids, found.request_id)
        end = target["request"]
        assert [item.item_id for item in found.history[:end]] == [row["item_id"] for row in rows[:end]]
        assert [*first[:end], first[-1]] == [row["request"] for row in rows[: end + 1]]
        assert [*known[:end], known[-1]] == [row["known"] for row in rows[: end + 1]]
