"""The synthetic log is the same for one seed, its defects are found to the last, and its best AUC is the best."""

from __future__ import annotations

import csv
import json
from hashlib import md5

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

#: md5 of the files of the default parameters.
DEMO = {
    "ratings.csv": "570a9d44e65f4a45b08f278ccc4789b1",
    "items.csv": "3c664391029083b9584024bd2aea4116",
    "truth.csv": "319173b346028378b5693a313253603b",
}


def small(**keys: int) -> Config:
    return from_plain(Config, {"synth": {"users": 60, "items": 80, "interactions_per_user": 40, **keys}})


def truth(home: Paths) -> list[dict[str, str]]:
    with (home.synthetic / "truth.csv").open() as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("more", [{}, {"rows_per_request": 2, "requests_per_sitting": 5, "mood": 2}], ids=str)
def test_one_seed_gives_the_same_bytes_and_another_does_not(home: Paths, more: dict[str, int]) -> None:
    digests = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        paths = Paths(home.home / name)
        synth(small(seed=seed, **more), paths)
        digests.append(folder_digest(paths.synthetic))
    assert digests[0] == digests[1] != digests[2]


def test_the_demos_log_keeps_its_bytes(home: Paths) -> None:
    """The figures of README.md and docs/ are of these."""
    synth(from_plain(Config, {}), home)
    digests = {name: md5((home.synthetic / name).read_bytes()).hexdigest() for name in DEMO}
    assert digests == DEMO


@pytest.mark.parametrize(("rows", "requests", "mood"), [(1, 10, 2), (4, 3, 2), (3, 1, 0), (1, 1, 1)])
def test_rows_come_in_requests_and_requests_in_sittings(home: Paths, rows: int, requests: int, mood: int) -> None:
    """Times by person, then: of one time are a request's rows, and within two minutes of the one before a sitting's."""
    report = synth(small(rows_per_request=rows, requests_per_sitting=requests, mood=mood, defects=0), home)
    lengths, apart, inside = [], [], []
    for user in range(1, report.users + 1):
        lines = [line for line in truth(home) if line["user_id"] == str(user)]
        times, counts = np.unique([int(line["timestamp"]) for line in lines], return_counts=True)
        assert (counts[:-1] == rows).all()
        assert counts[-1] <= rows
        gaps = np.diff(times)
        lengths += np.diff(np.flatnonzero(np.r_[True, gaps >= 120, True])).tolist()
        apart += gaps[gaps >= 120].tolist()
        inside += gaps[gaps < 120].tolist()
        if mood:
            sitting = {int(line["timestamp"]): int(line["sitting"]) for line in lines}
            assert (np.diff([sitting[time] for time in times]) == (gaps >= 120)).all()
    assert max(lengths) <= 2 * requests - 1
    assert np.mean(lengths) == pytest.approx(requests, rel=0.2)
    assert np.median(apart) > 86400
    assert not inside or (min(inside) >= 5 and np.mean(inside) == pytest.approx(62, rel=0.2))


def test_a_mood_is_good_or_bad_and_moves_all_labels_of_its_sitting(home: Paths) -> None:
    synth(small(requests_per_sitting=5, mood=2), home)
    moods: dict[str, set[str]] = {}
    for line in truth(home):
        chances = {name: float(line[name]) for name in ("in_bad_mood", "in_good_mood")}
        logits = [np.log(chance / (1 - chance)) for chance in chances.values()]
        assert logits[1] - logits[0] == pytest.approx(4, abs=1e-6)
        drawn = [
            name for name, chance in chances.items() if chance == pytest.approx(float(line["probability"]), abs=1e-6)
        ]
        moods.setdefault(line["sitting"], set()).update(drawn)
    assert all(len(drawn) == 1 for drawn in moods.values())
    good = sum(drawn == {"in_good_mood"} for drawn in moods.values())
    assert abs(good - len(moods) / 2) < 4 * np.sqrt(len(moods) / 4)


def test_sittings_leave_tastes_and_items_as_they_are(home: Paths) -> None:
    """So that two logs differ in nothing else."""
    found = []
    for more in ({}, {"requests_per_sitting": 5, "rows_per_request": 2}):
        synth(small(**more), home)
        found.append(sorted((line["user_id"], line["item_id"], line["probability"]) for line in truth(home)))
    assert found[0] == found[1]


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
