"""Each expectation fails on a batch with just its defect and names the rows; a good batch passes them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from validation_batches import CONFIG, LENGTH, USERS, Batch, good_batch, outcomes_of

from dti_pipeline import artifacts
from dti_pipeline.errors import CheckFailed
from dti_pipeline.paths import Paths
from dti_pipeline.validation import run
from dti_pipeline.validation.report import Outcome, ValidateReport
from dti_pipeline.validation.validate import validate

pytestmark = pytest.mark.slow  # Great Expectations takes its time: `make test` runs them


@pytest.fixture(autouse=True)
def no_data_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time, and none of what is proved here."""
    monkeypatch.setattr(run, "build", lambda context, folder, outcomes, notes: None)


def failures(paths: Paths) -> dict[str, Outcome]:
    with pytest.raises(CheckFailed):
        validate(CONFIG, paths)
    return {f"{o.suite}.{o.name}": o for o in outcomes_of(paths) if not o.success}


def test_a_good_batch_passes_every_expectation_and_is_remembered(home: Paths) -> None:
    good_batch().write(home)
    report = validate(CONFIG, home)
    assert (report.success, report.failed, report.failures) == (True, 0, ())
    assert set(report.suites) == {"raw", "canonical", "splits", "batch"}  # the first batch has no drift to check
    assert report.compared_with is None
    assert report.drift.startswith("nothing to compare with")
    assert report.profile.rows == USERS * LENGTH
    assert artifacts.read(home.checks, "validate", ValidateReport).report == report
    outcomes = outcomes_of(home)
    assert len(outcomes) == report.expectations
    assert all(o.success for o in outcomes)
    assert len({(o.suite, o.name) for o in outcomes}) == len(outcomes)
    assert home.accepted.is_file()


# --- one defect, one failure


def set_row(index: int, **values: Any) -> Callable[[Batch], None]:
    return lambda batch: batch.interactions[index].update(values)


def set_staged(index: int, **values: Any) -> Callable[[Batch], None]:
    return lambda batch: batch.staged[index].update(values)


def set_report(**values: Any) -> Callable[[Batch], None]:
    def change(batch: Batch) -> None:
        batch.report = replace(batch.report, **values)

    return change


def set_all(**values: Any) -> Callable[[Batch], None]:
    def change(batch: Batch) -> None:
        for row in batch.interactions:
            row.update(values)

    return change


def swap_times(batch: Batch) -> None:
    first, second = batch.interactions[4], batch.interactions[5]
    first["timestamp"], second["timestamp"] = second["timestamp"], first["timestamp"]


def early_test_user(batch: Batch) -> None:
    for row in batch.interactions[:LENGTH]:
        row["split"] = "test"


def repeat_interaction(batch: Batch) -> None:
    again = ("item_id", "item_text", "timestamp", "rating", "label")
    batch.interactions[6].update({name: batch.interactions[5][name] for name in again}, request=5, known=5)


def untitle(batch: Batch) -> None:
    for row in batch.interactions:
        if row["item_id"] in ("i1", "i2", "i3"):
            row["item_text"] = f"item {row['item_id']}"


def drop_rows(batch: Batch) -> None:
    batch.interactions = batch.interactions[: 4 * LENGTH]
    batch.report = replace(batch.report, kept=4 * LENGTH, read=4 * LENGTH + 4)


def refuse_more(batch: Batch) -> None:
    for row in batch.staged[:10]:
        row.update(reason="rating missing", raw="u,i,,1")


def no_clicks_in_test(batch: Batch) -> None:
    for row in batch.interactions:
        if row["split"] == "test":
            row.update(rating=1.0, label=0)


def no_skips_in_validation(batch: Batch) -> None:
    for row in batch.interactions:
        if row["split"] == "validation":
            row.update(rating=5.0, label=1)


def few_test_targets(batch: Batch) -> None:
    for row in batch.interactions:
        if row["split"] == "test" and not (row["position"] == 19 and row["user_id"] > "u3"):
            row["split"] = "validation"


def retype(column: str, kind: pa.DataType) -> Callable[[Batch], None]:
    def change(batch: Batch) -> None:
        fields = [pa.field(field.name, kind if field.name == column else field.type) for field in batch.schema]
        batch.schema = pa.schema(fields)

    return change


def swap_columns(batch: Batch) -> None:
    batch.schema = pa.schema([batch.schema.field(i) for i in (1, 0, 2, 3, 4, 5, 6, 7, 8, 9)])


def drop_raw_column(batch: Batch) -> None:
    batch.staged_schema = pa.schema([field for field in batch.staged_schema if field.name != "reason"])


def order_labels(batch: Batch) -> None:
    """Skips first, then clicks, but for a skip at the head of each split."""
    for row in batch.interactions:
        liked = row["position"] >= 10 and row["position"] not in (12, 16)
        row.update(rating=5.0 if liked else 2.0, label=int(liked))


# name of the defect: (how a good batch gets it, what then fails, first row shown: its tell-tale values)
DEFECTS: dict[str, tuple[Callable[[Batch], None], set[str], dict[str, Any] | None]] = {
    "a raw line read twice": (
        set_staged(1, line=2), {"raw.line_unique"}, {"source_file": "ratings.csv", "line": 2, "times": 2}),
    "a refused line without its text": (
        set_staged(-1, raw=None), {"raw.refused_row_kept"}, {"source_file": "ratings.csv", "line": 165}),
    "a good line without user": (set_staged(3, user_id=None), {"raw.user_id_not_null"}, {"line": 5, "item_id": "i3"}),
    "a good line without item": (set_staged(3, item_id=None), {"raw.item_id_not_null"}, {"line": 5, "user_id": "u0"}),
    "a good line without rating": (set_staged(3, rating=None), {"raw.rating_not_null"}, {"line": 5}),
    "a good line rated off the scale": (set_staged(3, rating=6.0), {"raw.rating_range"}, {"line": 5, "rating": 6.0}),
    "a good line before 1970": (set_staged(3, timestamp=-1), {"raw.timestamp_range"}, {"line": 5, "timestamp": -1}),
    "too many lines refused": (
        refuse_more, {"raw.refused_share"},
        {"source_file": "ratings.csv", "line": 2, "reason": "rating missing", "raw": "u,i,,1"}),
    "a raw column gone": (drop_raw_column, {"raw.columns", "raw.reason_type"}, None),
    "canonical columns in another order": (swap_columns, {"canonical.columns"}, None),
    "positions of another type": (retype("position", pa.int64()), {"canonical.position_type"}, None),
    "no user": (
        # a row of nobody parts the rows of its user: what follows no longer counts from 0
        set_row(25, user_id=None), {"canonical.user_id_not_null", "canonical.position_contiguous"},
        {"user_id": None, "position": 5, "item_id": "i12"}),
    "no item": (set_row(5, item_id=None), {"canonical.item_id_not_null"}, {"user_id": "u0", "position": 5}),
    "no text": (set_row(5, item_text=None), {"canonical.item_text_not_null"}, {"user_id": "u0", "position": 5}),
    "no rating": (set_row(5, rating=None), {"canonical.rating_not_null"}, {"user_id": "u0", "position": 5}),
    "no label": (set_row(5, label=None), {"canonical.label_not_null"}, {"user_id": "u0", "position": 5}),
    "no split": (set_row(5, split=None), {"canonical.split_not_null"}, {"user_id": "u0", "position": 5}),
    "no position": (
        set_row(5, position=None), {"canonical.position_not_null", "canonical.position_contiguous"},
        {"user_id": "u0", "position": None, "item_id": "i5"}),
    "no time in a log with a clock": (
        set_row(5, timestamp=None), {"canonical.timestamp_not_null"}, {"user_id": "u0", "position": 5}),
    "a rating off the scale": (
        set_row(5, rating=7.5, label=1), {"canonical.rating_range"}, {"user_id": "u0", "position": 5, "rating": 7.5}),
    "a rating that is not a number": (
        set_row(5, rating=float("nan"), label=1), {"canonical.rating_range"}, {"position": 5, "rating": "nan"}),
    "a label that is neither 0 nor 1": (
        set_row(5, label=2), {"canonical.label_set"}, {"user_id": "u0", "position": 5, "label": 2}),
    "a label against its rating": (
        set_row(5, rating=1.0, label=1), {"canonical.label_of_rating"}, {"position": 5, "rating": 1.0, "label": 1}),
    "an unknown split": (
        set_row(5, split="holdout"), {"canonical.split_set"}, {"user_id": "u0", "position": 5, "split": "holdout"}),
    "a blank text": (
        lambda batch: [row.update(item_text=" ") for row in batch.interactions if row["item_id"] == "i5"],
        {"canonical.item_text_not_blank"}, {"user_id": "u0", "position": 5, "item_id": "i5"}),
    "an item with two texts": (
        set_row(5, item_text="Another film"), {"canonical.item_one_text"},
        {"item_id": "i5", "one_text": "Another film", "other_text": "Film 5"}),
    "too many rows without a title": (untitle, {"canonical.untitled_share"}, {"item_text": "item i1"}),
    "a rating that is there twice": (
        repeat_interaction, {"canonical.interaction_unique"}, {"user_id": "u0", "item_id": "i5", "times": 2}),
    "two rows at one position": (
        set_row(6, position=5, request=5, known=5), {"canonical.position_unique", "canonical.position_contiguous"},
        {"user_id": "u0", "position": 5, "times": 2}),
    "a gap in the positions": (
        set_row(19, position=30, request=30), {"canonical.position_contiguous"},
        {"user_id": "u0", "position": 30, "previous_position": 18}),
    "time running backwards": (
        swap_times, {"canonical.time_monotone", "canonical.known_in_time"},
        {"user_id": "u0", "request": 5, "timestamp": 1_000_400, "previous_timestamp": 1_000_500}),
    "train after validation within a user": (
        set_row(13, split="train"), {"canonical.split_order", "canonical.split_clock"},
        {"user_id": "u0", "position": 13, "split": "train", "previous_split": "validation"}),
    "a user judged while others still train": (
        early_test_user, {"canonical.split_clock"}, {"user_id": "u1", "request": 0, "split": "train"}),
    "no request": (
        set_row(19, request=None), {"canonical.request_not_null"}, {"user_id": "u0", "position": 19}),
    "nothing said of what is known": (
        set_row(5, known=None), {"canonical.known_not_null"}, {"user_id": "u0", "position": 5}),
    "a request that begins elsewhere": (
        set_row(19, request=21), {"canonical.request_whole"}, {"user_id": "u0", "position": 19, "request": 21}),
    "a request in two splits": (
        set_row(12, request=11, known=11), {"canonical.request_one_split"},
        {"user_id": "u0", "position": 12, "split": "validation", "previous_split": "train"}),
    "a row that knows its own label": (
        set_row(5, known=6), {"canonical.known_before", "canonical.known_in_time"},
        {"user_id": "u0", "position": 5, "request": 5, "known": 6}),
    "a row that knows less than the one before": (
        set_row(8, known=3), {"canonical.known_grows"}, {"user_id": "u0", "position": 8, "known": 3}),
    "two rows of one second that know each other": (
        set_row(6, timestamp=1_000_500), {"canonical.known_in_time"},
        {"user_id": "u0", "position": 6, "known": 6, "last_known_timestamp": 1_000_500}),
    "a split with too few targets": (few_test_targets, {"splits.targets"}, {"split": "test", "targets": 4}),
    "a split without clicks": (no_clicks_in_test, {"splits.clicks"}, {"split": "test", "clicks": 0}),
    "a split without skips": (no_skips_in_validation, {"splits.skips"}, {"split": "validation", "skips": 0}),
    "nothing but clicks": (
        set_all(rating=5.0, label=1), {"batch.label_rate", "splits.skips"}, {"split": "test", "skips": 0}),
    "an order that tells labels": (order_labels, {"batch.click_later"}, None),
    "too little of everything": (drop_rows, {"batch.rows", "batch.users"}, None),
    "a ledger that does not add up": (set_report(duplicates=1), {"batch.unaccounted_rows"}, None),
    "a ledger of other rows": (set_report(kept=161, read=165), {"batch.rows_beside_ledger"}, None),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_fails_its_expectation_and_shows_its_rows(home: Paths, defect: str) -> None:
    spoil, expected, shown = DEFECTS[defect]
    batch = good_batch()
    spoil(batch)
    batch.write(home)
    failed = failures(home)
    assert set(failed) == expected
    for failure in failed.values():
        assert len(failure.failing_rows) <= CONFIG.validation.max_shown_rows
        assert failure.observed
        assert failure.expected
    if shown is not None:
        rows = [row for failure in failed.values() for row in failure.failing_rows]
        assert any(shown.items() <= row.items() for row in rows), rows
    assert not home.accepted.is_file()


def test_every_expectation_about_the_data_has_a_defect_that_fails_it(home: Paths) -> None:
    good_batch().write(home)
    validate(CONFIG, home)
    names = {f"{o.suite}.{o.name}" for o in outcomes_of(home) if not o.name.endswith("_type")}
    assert names == {name for _, expected, _ in DEFECTS.values() for name in expected if not name.endswith("_type")}
