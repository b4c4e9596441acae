"""The synthetic log is the same for one seed, its defects are found to the last, and its best AUC is the best."""

from __future__ import annotations

import csv
import json

import duckdb
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dti_pipeline.artifacts import folder_digest
from dti_pipeline.config import Config, from_plain
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.synthetic import NEUTRAL, TOPICS, synth
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain


def small(**keys: int) -> Config:
    return from_plain(Config, {"synth": {"users": 60, "items": 80, "interactions_per_user": 40, **keys}})


def test_one_seed_gives_the_same_bytes_and_another_does_not(home: Paths) -> None:
    digests = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        paths = Paths(home.home / name)
        synth(small(seed=seed), paths)
        digests.append(folder_digest(paths.synthetic))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("defects", [0, 1, 26, 40])
def test_the_ledger_finds_exactly_what_was_planted(home: Paths, defects: int) -> None:
    planted = synth(small(defects=defects), home)
    found = ingest(small(), home)
    assert found.reasons == planted.reasons
    assert (found.read, found.kept, found.quarantined, found.duplicates) == (
        planted.rows, planted.kept, planted.quarantined, planted.duplicates,
    )  # fmt: skip
    assert planted.quarantined == planted.duplicates == defects
    assert found.untitled == 0


def test_every_kind_of_bad_row_is_planted(home: Paths) -> None:
    assert set(synth(small(defects=26), home).reasons) == {
        "wrong number of fields", "user id missing", "item id missing", "rating missing", "rating not a number",
        "rating outside the scale", "timestamp missing", "timestamp not a time", "timestamp before 1970", "blank line",
        "quotes do not match", "not UTF-8 text",
    }  # fmt: skip


def test_the_best_possible_auc_is_that_of_the_truth_on_the_test_targets(home: Paths) -> None:
    report = synth(small(), home)
    ingest(small(), home)
    joined = duckdb.sql(f"""
        SELECT label, probability FROM '{home.events}/interactions.parquet' AS kept
        JOIN read_csv('{home.synthetic}/truth.csv', types = {{'user_id': 'VARCHAR', 'item_id': 'VARCHAR'}}) AS truth
        USING (user_id, item_id, timestamp) WHERE split = 'test' AND position >= 5
    """).fetchnumpy()
    assert len(joined["label"]) == report.test_targets
    assert report.best_possible_auc == pytest.approx(roc_auc_score(joined["label"], joined["probability"]), abs=1e-5)


def test_probabilities_are_honest(home: Paths) -> None:
    """Of rows with probability p, a share p is liked: mean and slope by least squares, within four standard errors."""
    synth(from_plain(Config, {}), home)
    ingest(from_plain(Config, {}), home)
    joined = duckdb.sql(f"""
        SELECT label, probability FROM '{home.events}/interactions.parquet'
        JOIN read_csv('{home.synthetic}/truth.csv', types = {{'user_id': 'VARCHAR', 'item_id': 'VARCHAR'}})
        USING (user_id, item_id, timestamp)
    """).fetchnumpy()
    label, chance = joined["label"].astype(float), joined["probability"]
    error = np.sqrt((chance * (1 - chance)).sum())
    assert abs((label - chance).sum()) < 4 * error
    centred = chance - chance.mean()
    slope_error = np.sqrt((centred**2 * chance * (1 - chance)).sum())
    assert abs((centred * (label - chance)).sum()) < 4 * slope_error


def test_titles_are_distinct_and_say_their_topic(home: Paths) -> None:
    synth(small(items=600), home)
    with (home.synthetic / "items.csv").open() as handle:
        titles = [row["title"].lower() for row in csv.DictReader(handle)]
    assert len(set(titles)) == 600
    topic_of = {word: topic for topic, words in enumerate(TOPICS) for word in words}
    mixed = 0
    for title in titles:
        words = title.split()
        topics = [topic_of[word] for word in words if word in topic_of]
        assert len(topics) in (2, 3)
        assert len(words) - len(topics) == 2
        assert all(word in topic_of or word in NEUTRAL for word in words)
        mixed += len(set(topics)) > 1
    assert 0.05 < mixed / len(titles) < 0.25


def test_more_ratings_than_items_is_not_asked_of_anyone(home: Paths) -> None:
    report = synth(small(items=10, interactions_per_user=50), home)
    assert report.kept <= 60 * 10
    manifest = json.loads((home.synthetic / "manifest.json").read_text())
    assert manifest["report"] == to_plain(report)
