"""What rules find in parts of a log is what they find in the whole."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from validation_batches import CONFIG, Batch, good_batch

from dti_pipeline import artifacts
from dti_pipeline.config import Config, ExecutionConfig
from dti_pipeline.events.report import IngestReport
from dti_pipeline.paths import Paths
from dti_pipeline.validation import counts, suites
from dti_pipeline.validation.tables import batches, open_tables

pytestmark = pytest.mark.slow

#: Values that spoil a column of the interactions.
SPOILT: dict[str, list[Any]] = {
    "user_id": ["u3", None], "item_id": ["i1", None], "item_text": ["", "another", None], "rating": [9.0, None, 2.0],
    "timestamp": [0.0, 1e9, None], "label": [0, 1, 7, None], "split": ["train", "validation", "test", "later", None],
    "position": [0, 3, 19, None], "request": [0, 2, 19, None], "known": [0, 5, 30, -1, None],
}  # fmt: skip


def spoilt(seed: int) -> Batch:
    batch, draw = good_batch(), random.Random(seed)
    for _ in range(draw.randrange(1, 9)):
        column = draw.choice(list(SPOILT))
        draw.choice(batch.interactions)[column] = draw.choice(SPOILT[column])
    for row in draw.sample(batch.staged, 3):
        column = draw.choice(["raw", "user_id", "rating", "reason", "line"])
        row[column] = draw.choice([None, *(other.get(column) for other in batch.staged)])
    return batch


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Config:
    """Each user is a part, and each part a task of this process."""
    monkeypatch.setattr(counts.tasks, "several", lambda execution: True)
    monkeypatch.setattr(counts, "ROWS", 20)
    return CONFIG


def test_parts_of_spoilt_logs_add_up(home: Paths, in_parts: Config) -> None:
    seen, broken = set(), set()
    for seed in range(12):
        batch = spoilt(seed)
        batch.write(home)
        users = {row["user_id"] for row in batch.interactions}
        (checked,) = batches(artifacts.read(home.events, "ingest", IngestReport), home)
        with open_tables(in_parts, home, checked) as tables:
            chosen = [suites.raw(in_parts, tables, (1.0, 5.0)), suites.canonical(in_parts, tables, (1.0, 5.0), True)]
            found = counts.counted(in_parts, home, chosen, checked, len(users - {None}))
            assert found == {query: tables.count(query) for query in found}, seed
        rules = [rule for suite in chosen for rule in suite.rules]
        queries = {rule.expectation.query: rule for rule in rules if hasattr(rule.expectation, "query")}
        if found:
            assert found.keys() >= {query for query, rule in queries.items() if not rule.whole_log}
            broken |= {queries[query].name for query, count in found.items() if query in queries and count}
        seen.add(bool(found))
    assert seen == {True, False}  # users who do not stand together are counted in the whole log
    assert len(broken) >= 15


def test_processes_find_what_one_process_finds(home: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "ROWS", 80)
    spoilt(1).write(home)
    two = replace(CONFIG, execution=ExecutionConfig(workers=2))
    (checked,) = batches(artifacts.read(home.events, "ingest", IngestReport), home)
    with open_tables(CONFIG, home, checked) as tables:
        chosen = [suites.raw(CONFIG, tables, (1.0, 5.0)), suites.canonical(CONFIG, tables, (1.0, 5.0), True)]
        found = counts.counted(two, home, chosen, checked, 8)
        assert found == {query: tables.count(query) for query in found} != {}
    assert counts.counted(CONFIG, home, chosen, checked, 8) == {}
