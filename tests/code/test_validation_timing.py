"""What validation says of requests and of the ages of labels, against plain loops; and the one warning."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from validation_batches import CONFIG, LENGTH, Batch, good_batch

from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.validation import run
from dti_pipeline.validation.report import ValidateReport
from dti_pipeline.validation.validate import validate

SECONDS = {"a second": 1, "a minute": 60, "ten minutes": 600, "an hour": 3600, "a day": 86_400}


def configured(context: int, **split: Any) -> Config:
    """Splits are not this file's affair."""
    return replace(
        CONFIG,
        packing=replace(CONFIG.packing, context=context),
        split=replace(CONFIG.split, rule="user_order", **split),
    )


def sittings(batch: Batch, seed: int) -> None:
    """Times with gaps of seconds to days; rows of one time stamp are one request, in no order of their own."""
    draw = random.Random(seed)
    for start in range(0, len(batch.interactions), LENGTH):
        history = batch.interactions[start : start + LENGTH]
        time, request = 1_000_000, 0
        for place, row in enumerate(history):
            gap = draw.choice([0, 0, 1, 30, 60, 500, 600, 5000, 100_000])
            same_split = place > 0 and history[place - 1]["split"] == row["split"]
            time += gap if same_split else gap + 1
            request = place if gap or not same_split else request
            row.update(timestamp=time, request=request, known=request)


def loops(batch: Batch, context: int, min_history: int) -> dict[str, float]:
    """Shares of all pairs of a target and one of the last rows before its request."""
    ages = []
    for start in range(0, len(batch.interactions), LENGTH):
        history = batch.interactions[start : start + LENGTH]
        for row in history:
            if row["request"] >= min_history:
                before = history[max(0, row["request"] - context) : row["request"]]
                ages += [row["timestamp"] - earlier["timestamp"] for earlier in before]
    return {name: sum(age < seconds for age in ages) / max(len(ages), 1) for name, seconds in SECONDS.items()}


@pytest.fixture
def checked(home: Paths, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(run, "build", lambda context, folder, outcomes, notes: None)

    def check(batch: Batch, config: Config) -> ValidateReport:
        batch.write(home)
        return validate(config, home)

    return check


@pytest.mark.parametrize("context", [0, 1, 4, 50])
def test_ages_and_requests_are_what_the_loops_count(checked: Any, context: int) -> None:
    batch = good_batch()
    sittings(batch, context)
    report = checked(batch, configured(context))
    assert report.younger_than == pytest.approx(loops(batch, context, 2), abs=1e-6)
    sizes: dict[tuple[str, int], int] = {}
    for row in batch.interactions:
        sizes[row["user_id"], row["request"]] = sizes.get((row["user_id"], row["request"]), 0) + 1
    assert report.largest_request == max(sizes.values()) > 1
    assert report.rows_in_requests == sum(size for size in sizes.values() if size > 1)


def test_young_labels_are_warned_of_in_one_sentence_unless_a_delay_hides_them(checked: Any) -> None:
    batch = good_batch()
    for place, row in enumerate(batch.interactions):
        row["timestamp"] = 1_000_000 + 30 * (place % LENGTH)
    report = checked(batch, configured(1))
    assert report.younger_than["a minute"] == 1
    assert report.warning.startswith("100.0% of the labels in a target's context are younger than a minute: a model is")
    assert "`split.feedback_delay`" in report.warning
    assert "\n" not in report.warning
    assert report.label_ages == (
        "of the last 1 before a target 0.0% are younger than a second, 100.0% than a minute, 100.0% than ten minutes,"
        " 100.0% than an hour, 100.0% than a day"
    )
    for place, row in enumerate(batch.interactions):
        row["known"] = max(0, place % LENGTH - 3)  # labels take 90 seconds, then 120
    report = checked(batch, configured(1, feedback_delay=90))
    assert report.warning is None
    assert report.younger_than["a minute"] == 1, "a label's age does not depend on who may see it"


def test_old_labels_are_not_warned_of(checked: Any) -> None:
    report = checked(good_batch(), configured(4))  # a hundred seconds from row to row
    assert (report.warning, report.younger_than["a minute"], report.rows_in_requests) == (None, 0, 0)


def test_a_log_without_a_clock_has_no_ages(checked: Any) -> None:
    batch = good_batch()
    for row in batch.interactions:
        row["timestamp"] = None
    report = checked(batch, configured(4))
    assert (report.younger_than, report.label_ages) == (None, "not known: the log has no clock")


def test_copied_users_are_warned_of_in_one_sentence(checked: Any) -> None:
    """Two users under new ids with other labels and times, of which one trains where its copy is held out."""
    batch = good_batch()
    report = checked(batch, configured(1))
    assert (report.copied_users, report.copies) == (0, None)
    for user, other, train in ((0, 1, 12), (2, 3, 20)):
        for place in range(LENGTH):
            row, copied = (batch.interactions[u * LENGTH + place] for u in (user, other))
            row.update(item_id=copied["item_id"], item_text=copied["item_text"])
            if place < train:
                row["split"] = "train"
    report = checked(batch, configured(1))
    assert report.copied_users == 4
    assert report.copies == (
        "4 users have, item by item, the history of another user: 8 of their held-out rows stand among the training"
        " rows of a copy, so that a score may be memory"
    )
    batch.interactions[2 * LENGTH].update(item_id="i39", item_text="Film 39")
    report = checked(batch, configured(1))
    assert report.copies == "2 users have, item by item, the history of another user: one person counts as several"


@pytest.mark.slow
def test_the_page_says_what_the_report_says(home: Paths) -> None:
    batch = good_batch()
    for place, row in enumerate(batch.interactions):
        row["timestamp"] = 1_000_000 + 30 * (place % LENGTH)
    batch.write(home)
    report = validate(configured(1), home)
    page = (home.data_docs / "index.html").read_text()
    assert f"<p>Ages of labels: {report.label_ages}.</p>" in page
    assert "<p>100.0% of the labels in a target&#x27;s context are younger than a minute" in page
    assert "<p>Rows in requests of more than one: 0; the largest has 1.</p>" in page
