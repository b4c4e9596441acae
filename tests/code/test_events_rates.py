"""`{item_rate}` and `{user_rate}`: what they count is what was known when a row was shown, and nothing later."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from dti_pipeline import audit
from dti_pipeline.config import Config, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events import published
from dti_pipeline.events.ingest import ingest
from dti_pipeline.paths import Paths
from tests import growing_logs as growing
from tests.code.raw_logs import HEADER, rows, settings

#: (user, item, click, time): few of each, so that ties are common.
LOG = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 9)),
    min_size=1, max_size=30, unique_by=lambda row: row[:2] + row[3:],
)  # fmt: skip
PROPERTY = hypothesis(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
BOTH = "{item_text} {item_rate}{user_rate}"
Row = dict[str, Any]


def config(home: Paths, template: str = BOTH, **more: Any) -> Config:
    return replace(settings(home.home / "log.csv", **more), tokens=TokensConfig(template=template))


def write(home: Paths, log: list[tuple[int, int, bool, int]]) -> None:
    lines = [f"{user},{item},{5 if click else 1},{time}" for user, item, click, time in log]
    (home.home / "log.csv").write_text("\n".join([HEADER, *lines, ""]))


def read(home: Paths) -> list[Row]:
    names = ("user_id", "item_id", "timestamp", "label", "split", "known", "position", "item_rate", "user_rate")
    return [dict(zip(names, row, strict=True)) for row in rows(home, ", ".join(names))]


def tenth(labels: list[int], share: float) -> str:
    return str(min(9, math.floor(10 * (sum(labels) + 5 * share) / (len(labels) + 5) + 1e-9)))


@pytest.mark.slow
@PROPERTY
@given(log=LOG, delay=st.sampled_from([None, 0, 1, 2.5, 100]), until=st.sampled_from([None, "test_start"]))
def test_rates_are_those_of_the_loops(
    home: Paths, log: list[tuple[int, int, bool, int]], delay: float | None, until: str | None
) -> None:
    write(home, log)
    ingest(config(home, split={"feedback_delay": delay, "feedback_until": until}), home)
    found = read(home)
    for row in found:
        told = [
            other
            for other in found
            if other["timestamp"] + (delay or 0) <= row["timestamp"]
            and other["timestamp"] < row["timestamp"]
            and not (until and other["split"] == "test")
        ]
        share = sum(other["label"] for other in told) / len(told) if told else 0.5
        of_item = [other["label"] for other in told if other["item_id"] == row["item_id"]]
        own = [other for other in found if other["user_id"] == row["user_id"]]
        of_user = [other["label"] for other in own if other["position"] < row["known"]]
        assert row["item_rate"] == tenth(of_item, share), row
        assert row["user_rate"] == tenth(of_user, share), row


def drawn(seed: int) -> list[tuple[int, int, bool, int]]:
    draw = random.Random(seed)
    return [
        (user, draw.randrange(12), draw.random() < 0.6, 100 * place + draw.randrange(90))
        for user in range(30)
        for place in range(20)
    ]


@pytest.mark.parametrize("delay", [None, 500])
def test_a_label_that_is_not_known_yet_changes_no_rate(home: Paths, delay: float | None) -> None:
    """Labels of a moment turned over: every row shown before they are known reads as it did."""
    log, moment = drawn(1), 1000
    made = []
    for turned in (False, True):
        write(home, [(u, i, click != (turned and time >= moment), time) for u, i, click, time in log])
        ingest(config(home, split={"feedback_delay": delay}), home)
        made.append(read(home))
    early = [row["timestamp"] < moment + (delay or 1) for row in made[0]]
    assert 50 < sum(early) < len(early) - 50
    rates = [[(row["item_rate"], row["user_rate"]) for row in rows_] for rows_ in made]
    assert [one for one, first in zip(rates[0], early, strict=True) if first] == [
        one for one, first in zip(rates[1], early, strict=True) if first
    ]
    assert rates[0] != rates[1]


def test_any_number_of_buckets_has_the_same_bytes(home: Paths) -> None:
    write(home, drawn(2))
    made = []
    for buckets in (1, 5):
        ingest(config(home, split={"feedback_delay": 300}, buckets=buckets), home)
        made.append((home.events / "interactions.parquet").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("loads_from", [None, growing.FIRST_LOAD], ids=["one log", "loads"])
@pytest.mark.parametrize("ids", [True, False], ids=["request ids", "no ids"])
@pytest.mark.parametrize("delay", [None, 7200.0])
def test_the_audit_counts_the_same_and_finds_one_that_is_not(
    home: Paths, loads_from: str | None, ids: bool, delay: float | None
) -> None:
    """Counted by other code, from the published files alone."""
    growing.write(home, late=True)
    columns = {"item_text": "title", **({"request_id": "request"} if ids else {})}
    made = growing.config(
        loads_from, events={"columns": columns}, split={"feedback_delay": delay}, tokens={"template": BOTH}
    )
    ingest(made, home)
    rules = [f"{name} counts labels that were known, and all of them" for name in ("item_rate", "user_rate")]
    assert audited(home, rules) == [0, 0]
    path = published.interactions(home.events)[-1]
    table = pq.read_table(path)
    at = table.schema.get_field_index("item_rate")
    other = pa.array([str(9 - int(rate)) for rate in table["item_rate"].to_pylist()])
    pq.write_table(table.set_column(at, table.schema.field(at), other), path)
    assert audited(home, rules) == [len(table), 0]


def audited(home: Paths, rules: list[str]) -> list[int]:
    """Rows that break these rules."""
    found = {check.rule: check.broken for check in audit._events(audit._Log.read(home.events))}
    return [found[rule] for rule in rules]


def test_an_order_without_a_clock_has_rates_of_users_only(home: Paths) -> None:
    write(home, drawn(3))
    columns = {"columns": {"timestamp": None}}
    ingest(config(home, "{item_text} {user_rate}", **columns), home)
    own: dict[str, list[int]] = {}
    for user, label, rate in rows(home, "user_id, label, user_rate"):
        assert rate == tenth(own.setdefault(user, []), 0.5)
        own[user].append(label)
    with pytest.raises(InputError, match="no timestamps, which"):
        ingest(config(home, **columns), home)


def test_a_log_with_a_column_of_that_name_is_refused(home: Paths) -> None:
    (home.home / "log.csv").write_text(f"{HEADER},item_rate\n1,1,5,1,0.3\n")
    with pytest.raises(InputError, match="which is made of labels, and the log has a column of that name"):
        ingest(config(home), home)
    with pytest.raises(InputError, match="user_template"):
        TokensConfig(user_template="{user_rate}")
