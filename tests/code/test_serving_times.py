"""Times in requests: what a history knows of itself, and times that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.errors import InputError
from dti_pipeline.packing.report import Knowledge
from dti_pipeline.serving import requests
from dti_pipeline.serving.knowledge import known_rows


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
    ],
)
def test_times_that_cannot_be_are_one_sentence(request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        requests.parse({"candidates": [], **request_}, "request 0")
