"""Whatever the bytes of a log: nothing crashes, and every line is in the ledger."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from dti_pipeline.events.ingest import ingest
from dti_pipeline.paths import Paths
from tests.code.raw_logs import HEADER, adds_up, quarantine, rows, settings

pytestmark = pytest.mark.slow

FIELD = st.sampled_from(
    ["1", "2", "10", "4", "1000", "", " ", "x", '"', '"a,b"', "\xe9", "::", ",", "\t", "|", "\r", "\0", "{", "}", "nan"]
)
TEXT = st.lists(st.lists(FIELD, max_size=6).map(",".join), max_size=8).map("\n".join)


GOOD_LINES = {
    "log.csv": "{user},10,4,1000\n",
    "log.jsonl": '{{"user_id":{user},"item_id":2,"rating":3,"timestamp":4}}\n',
    "ratings.dat": "{user}::10::4::1000\n",
}


@pytest.mark.parametrize("name", list(GOOD_LINES))
@hypothesis.settings(
    deadline=None, max_examples=20, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(text=TEXT, encoding=st.sampled_from(["utf-8", "iso-8859-1"]))
def test_no_bytes_crash_it_and_every_line_is_in_the_ledger(home: Paths, name: str, text: str, encoding: str) -> None:
    start = HEADER + "\n" if name == "log.csv" else ""
    content = (start + "".join(GOOD_LINES[name].format(user=user) for user in range(9)) + text).encode(encoding)
    (home.home / name).write_bytes(content)
    report = ingest(settings(home.home / name, "movielens" if name == "ratings.dat" else "table"), home)
    lines = content.count(b"\n") + (not content.endswith(b"\n")) - (name == "log.csv")
    assert adds_up(report)
    # A quoted CSV field may hold newlines: then several lines are one row.
    assert report.read == lines or (name == "log.csv" and report.read < lines and b'"' in content)
    assert len(quarantine(home)) == report.quarantined
    assert len(rows(home)) == report.kept


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a":' * 50_000, "1" * 10_000], ids=["lists", "objects", "number"])
def test_json_of_any_depth_is_only_a_bad_row(home: Paths, line: str) -> None:
    good = '{"user_id":1,"item_id":2,"rating":3,"timestamp":4}\n'
    (home.home / "log.jsonl").write_text(line + "\n" + good)
    assert ingest(settings(home.home / "log.jsonl"), home).quarantined == 1
