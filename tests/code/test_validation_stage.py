"""Around the expectations: what is published, remembered and refused, and what a failure says."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from validation_batches import CONFIG, Batch, good_batch, outcomes_of

from dti_pipeline import artifacts
from dti_pipeline.config import Config, EventsConfig, SplitConfig
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.synthetic import synth
from dti_pipeline.paths import Paths
from dti_pipeline.validation.report import SuiteCounts, ValidateReport
from dti_pipeline.validation.requirement import require_passed
from dti_pipeline.validation.validate import validate

pytestmark = pytest.mark.slow


def spoilt_batch() -> Batch:
    batch = good_batch()
    batch.interactions[5]["split"] = "holdout"
    return batch


def drifted_batch() -> Batch:
    """Every fourth row of label 1 becomes one of label 0."""
    batch = good_batch()
    for row in [row for row in batch.interactions if row["label"]][::4]:
        row.update(rating=1.0, label=0)
    return batch


# --- the stage


def test_a_failure_is_one_sentence_that_names_the_check_and_where_its_rows_are(home: Paths) -> None:
    spoilt_batch().write(home)
    with pytest.raises(CheckFailed) as failure:
        validate(CONFIG, home)
    message = str(failure.value)
    assert "\n" not in message
    for part in ("1 of 67 checks failed", "canonical.split_set", "1 of 160 rows", "outcomes.json", "index.html"):
        assert part in message
    report = artifacts.read(home.checks, "validate", ValidateReport).report
    assert report.success is False
    assert [failure.failing_rows for failure in report.failures] == [
        ({"user_id": "u0", "position": 5, "item_id": "i5", "split": "holdout"},)
    ]


def test_a_listing_for_the_terminal_names_the_rows_and_counts_the_rest(home: Paths) -> None:
    batch = good_batch()
    for row in batch.interactions[3:8]:
        row["split"] = "holdout"
    batch.write(home)
    with pytest.raises(CheckFailed) as failure:
        validate(CONFIG, home)
    assert isinstance(failure.value.report, ValidateReport)
    assert failure.value.report.listing().splitlines() == [
        "canonical.split_set: A split is train, validation or test; observed: 5 of 160 rows",
        "  user_id=u0  position=3  item_id=i3  split=holdout",
        "  user_id=u0  position=4  item_id=i4  split=holdout",
        "  user_id=u0  position=5  item_id=i5  split=holdout",
        "  ... and 2 more",
    ]


def test_the_same_batch_gives_the_same_bytes_before_and_after_it_was_accepted(home: Paths) -> None:
    good_batch().write(home)
    validate(CONFIG, home)
    first = artifacts.folder_digest(home.checks), home.accepted.read_bytes()
    validate(CONFIG, home)
    assert (artifacts.folder_digest(home.checks), home.accepted.read_bytes()) == first


def test_nothing_is_said_and_nothing_is_written_but_checks_docs_and_the_accepted_profile(
    home: Paths, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(elsewhere))
    good_batch().write(home)
    before = {path for path in home.home.rglob("*") if path.is_file()}
    validate(CONFIG, home)
    assert list(elsewhere.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    new = {path for path in home.home.rglob("*") if path.is_file()} - before
    roots = (home.checks, home.data_docs)
    assert {path for path in new if not any(path.is_relative_to(root) for root in roots)} == {home.accepted}
    assert {path.name for path in home.checks.iterdir()} == {"manifest.json", "outcomes.json"}


def test_data_docs_list_every_suite_and_show_failing_rows_without_a_network(
    home: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt_batch().write(home)
    with pytest.raises(CheckFailed):
        validate(CONFIG, home)
    index = (home.data_docs / "index.html").read_text()
    checked = re.search(r'<div class="checked">.*</div>', index)
    assert checked
    links = dict(re.findall(r'<a href="([^"]+)">(\w+)</a>', checked[0]))
    assert list(links.values()) == ["raw", "canonical", "splits", "batch"]
    assert all((home.data_docs / link).is_file() for link in links)
    assert "A split is train, validation or test: 1 of 160 rows" in checked[0]
    (page,) = (home.data_docs / link for link, suite in links.items() if suite == "canonical")
    text = page.read_text()
    assert "holdout" in text
    assert "Data asset: interactions" in text
    assert str(home.home) not in text + index
    assert not caplog.records  # Great Expectations logs what it cannot render, and goes on


def test_a_log_without_a_clock_is_checked_by_its_order(home: Paths) -> None:
    batch = good_batch()
    for row in batch.interactions:
        row["timestamp"] = None
    batch.write(home)
    validate(replace(CONFIG, split=replace(CONFIG.split, rule="user_order")), home)
    names = {o.name for o in outcomes_of(home)}
    assert "split_clock" not in names
    assert "split_order" in names


def test_an_open_rating_scale_bounds_nothing_but_what_is_no_number(home: Paths) -> None:
    batch = good_batch()
    batch.report = replace(batch.report, rating_scale=(None, None))
    batch.interactions[4].update(rating=1e9, label=1)
    batch.write(home)
    validate(CONFIG, home)
    batch.interactions[4].update(rating=float("inf"))
    batch.write(home)
    with pytest.raises(CheckFailed, match="rating_range"):
        validate(CONFIG, home)
    assert artifacts.read(home.checks, "validate", ValidateReport).report.failures[0].failing_rows[0]["rating"] == "inf"


@pytest.mark.parametrize("missing", ["manifest.json", "interactions.parquet"])
def test_events_that_are_not_whole_are_an_input_error_that_says_what_to_run(home: Paths, missing: str) -> None:
    good_batch().write(home)
    (home.events / missing).unlink()
    with pytest.raises(InputError, match=r"run `dti ingest`"):
        validate(CONFIG, home)
    assert not home.checks.exists()
    assert not home.data_docs.exists()


def test_a_file_that_is_no_parquet_is_an_input_error(home: Paths) -> None:
    good_batch().write(home)
    (home.events / "interactions.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match=r"interactions\.parquet"):
        validate(CONFIG, home)


# --- drift


def test_a_batch_like_the_accepted_one_is_compared_and_takes_its_place(home: Paths) -> None:
    good_batch(users=8).write(home)
    first = validate(CONFIG, home)
    good_batch(users=9).write(home)
    second = validate(CONFIG, home)
    assert second.suites["drift"] == SuiteCounts(2, 0)
    assert second.compared_with == first.profile
    good_batch(users=10).write(home)
    assert validate(CONFIG, home).compared_with == second.profile


@pytest.mark.parametrize(
    ("batch", "failed"),
    [(drifted_batch(), "label_rate_change"), (good_batch(users=3), "volume_ratio")],
    ids=["clicks become rare", "most rows are gone"],
)
def test_a_drifted_batch_is_refused_and_the_accepted_profile_stays(home: Paths, batch: Batch, failed: str) -> None:
    limits = replace(CONFIG.validation, max_quarantined_share=0.1, min_rows=10, min_users=2, min_targets=1)
    config = replace(CONFIG, validation=limits)
    good_batch().write(home)
    validate(config, home)
    accepted = home.accepted.read_bytes()
    batch.write(home)
    for _ in range(2):  # nor does asking again wear it down
        with pytest.raises(CheckFailed, match=rf"drift\.{failed}.*remove .*accepted\.json"):
            validate(config, home)
        assert home.accepted.read_bytes() == accepted
    home.accepted.unlink()
    assert validate(config, home).compared_with is None


def test_a_batch_that_fails_something_else_is_not_remembered_either(home: Paths) -> None:
    good_batch().write(home)
    validate(CONFIG, home)
    accepted = home.accepted.read_bytes()
    spoilt_batch().write(home)
    with pytest.raises(CheckFailed):
        validate(CONFIG, home)
    assert home.accepted.read_bytes() == accepted


def test_labels_of_another_threshold_are_not_compared(home: Paths) -> None:
    good_batch().write(home)
    validate(CONFIG, home)
    batch = good_batch()
    for row in batch.interactions:
        row["rating"] += 0.0 if row["rating"] == 5.0 else 0.5  # another batch with the same labels
    batch.write(home)
    threshold = replace(CONFIG, split=replace(CONFIG.split, label_threshold=4.0))
    assert validate(threshold, home).compared_with is None


def test_an_unreadable_memory_is_an_input_error_that_says_how_to_start_afresh(home: Paths) -> None:
    good_batch().write(home)
    for content in ("{", "[]", '{"accepted": {}}'):
        home.accepted.write_text(content)
        with pytest.raises(InputError, match=r"accepted\.json .*remove it"):
            validate(CONFIG, home)


# --- the gate


def test_the_gate_opens_for_checked_events_only(home: Paths) -> None:
    good_batch().write(home)
    with pytest.raises(InputError, match="dti validate"):
        require_passed(CONFIG, home)
    validate(CONFIG, home)
    require_passed(CONFIG, home)
    good_batch(users=9).write(home)
    with pytest.raises(InputError, match=r"other events.*dti validate"):
        require_passed(CONFIG, home)


def test_the_gate_stays_shut_for_failed_events_unless_told_otherwise(
    home: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt_batch().write(home)
    with pytest.raises(CheckFailed):
        validate(CONFIG, home)
    with pytest.raises(CheckFailed, match="failed 1 of 67 checks"):
        require_passed(CONFIG, home)
    at_own_risk = replace(CONFIG, validation=replace(CONFIG.validation, required=False))
    require_passed(at_own_risk, home)
    caplog.clear()
    assert not validate(at_own_risk, home).success
    assert "going on at your own risk" in caplog.text
    assert not home.accepted.exists()
    shutil.rmtree(home.checks)
    require_passed(at_own_risk, home)


# --- logs as ingestion reads


def test_the_synthetic_log_passes_and_its_refused_rows_are_shown_when_they_are_too_many(home: Paths) -> None:
    synth(Config(), home)
    ingest(Config(), home)
    validate(Config(), home)
    strict = replace(Config().validation, max_quarantined_share=0.0)
    with pytest.raises(CheckFailed, match=r"raw\.refused_share"):
        validate(Config(validation=strict), home)
    (failure,) = artifacts.read(home.checks, "validate", ValidateReport).report.failures
    assert failure.unexpected_count == Config().synth.defects
    assert len(failure.failing_rows) == strict.max_shown_rows
    for row in failure.failing_rows:
        assert row["line"] >= 1
        assert row["reason"]
        assert (home.synthetic / Path(row["source_file"]).name).is_file()


@pytest.mark.real
@pytest.mark.parametrize(
    ("log", "source", "split"),
    [
        ("ml-latest-small", "movielens", SplitConfig()),
        ("movietweetings-100k", "movietweetings", SplitConfig(label_threshold=6.0)),
        ("ml-1m", "movielens", SplitConfig(rule="user_order")),
    ],
)
def test_a_real_log_passes_with_default_thresholds(
    home: Paths, real_data: Path, log: str, source: str, split: SplitConfig
) -> None:
    config = Config(events=EventsConfig(source=source, path=str(real_data / log)), split=split)  # type: ignore[arg-type]
    ledger = ingest(config, home)
    report = validate(config, home)
    assert report.success
    assert report.profile.rows == ledger.kept
