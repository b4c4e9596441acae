"""The best possible with moods: what the known labels tell of them, no more and no less."""

from __future__ import annotations

import csv
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from dti_pipeline.config import Config, from_plain
from dti_pipeline.evaluation import interactions, metrics
from dti_pipeline.evaluation.floors import best_possible
from dti_pipeline.evaluation.interactions import Array, Interactions
from dti_pipeline.events.ingest import ingest
from dti_pipeline.events.synthetic import synth
from dti_pipeline.paths import Paths

TINY = {"seed": 3, "users": 6, "items": 30, "interactions_per_user": 12, "mood": 1.5}
LARGER = {"users": 150, "items": 200, "requests_per_sitting": 10, "mood": 3.0}
HOUR, LONGEST = 3600, 18 * 120  # seconds; a sitting of at most 19 requests


@dataclass
class Known:
    """A log, and the best possible probabilities of all its rows."""

    log: Interactions
    best: Array
    truth: dict[tuple[str, str, str], dict[str, str]]  # lines of truth.csv

    def auc(self) -> float:
        return metrics.auc(self.log.label, self.best)


def read(home: Paths, log: dict[str, Any], **split: Any) -> Known:
    config = from_plain(Config, {"synth": log, "split": split})
    synth(config, home)
    ingest(config, home)
    found = interactions.read(home, config.split.min_history)
    best = best_possible(home, found, np.arange(len(found.label)))
    assert best is not None
    with (home.synthetic / "truth.csv").open() as handle:
        truth = {(line["user_id"], line["item_id"], line["timestamp"]): line for line in csv.DictReader(handle)}
    return Known(found, best, truth)


@pytest.mark.parametrize("rows_per_request", [1, 3])
@pytest.mark.parametrize(
    "split",
    [{}, {"feedback_delay": 60}, {"feedback_delay": HOUR}, {"ties": "ordered"}, {"feedback_until": "test_start"}],
    ids=str,
)
def test_it_is_that_of_all_moods_enumerated(home: Paths, rows_per_request: int, split: dict[str, Any]) -> None:
    """P(label and known labels) / P(known labels), each a sum over every mood that all the user's sittings can have."""
    sitting = {"rows_per_request": rows_per_request, "requests_per_sitting": 4 if rows_per_request == 1 else 2}
    found = read(home, TINY | sitting, **split)
    inferred = 0
    for user in np.unique(found.log.user):
        here = np.flatnonzero(found.log.user == user)
        ids = found.log.table.select(["user_id", "item_id", "timestamp"]).take(here).to_pylist()
        lines = [found.truth[row["user_id"], row["item_id"], str(int(row["timestamp"]))] for row in ids]
        names = sorted({line["sitting"] for line in lines})
        for row, (line, best) in enumerate(zip(lines, found.best[here], strict=True)):
            told = range(found.log.known[here[row]])
            with_label = without = 0.0
            for moods in itertools.product(("in_bad_mood", "in_good_mood"), repeat=len(names)):
                mood = dict(zip(names, moods, strict=True))
                likes = [float(other[mood[other["sitting"]]]) for other in lines]
                chance = 1.0
                for other in told:
                    chance *= likes[other] if found.log.label[here[other]] else 1 - likes[other]
                without += chance
                with_label += chance * likes[row]
            assert best == pytest.approx(with_label / without, rel=1e-9)
            inferred += any(lines[other]["sitting"] == line["sitting"] for other in told)
    assert (inferred > 0) == (split.get("feedback_delay") != HOUR), "no case, or one that cannot be"


@pytest.mark.slow
def test_a_delay_costs_until_it_is_longer_than_a_sitting(home: Paths) -> None:
    auc = {delay: read(home, LARGER, feedback_delay=delay).auc() for delay in (None, 120, 600, LONGEST, HOUR)}
    assert auc[None] > auc[120] > auc[600] > auc[LONGEST] - 0.002
    assert auc[None] > auc[HOUR] + 0.05
    assert auc[LONGEST] == pytest.approx(auc[HOUR], abs=1e-3)


@pytest.mark.parametrize("delay", [None, HOUR])
def test_it_is_honest(home: Paths, delay: float | None) -> None:
    """Of rows with probability p, a share p is liked, within four standard errors."""
    found = read(home, LARGER, feedback_delay=delay)
    for low in np.arange(0, 1, 0.2):
        here = (found.best >= low) & (found.best < low + 0.2)
        chance, label = found.best[here], found.log.label[here]
        assert abs((label - chance).sum()) < 4 * np.sqrt((chance * (1 - chance)).sum())
        assert here.sum() > 100


def test_a_row_that_the_truth_lacks_leaves_it_out(home: Paths) -> None:
    found = read(home, TINY)
    path = home.synthetic / "truth.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert best_possible(home, found.log, np.array([0])) is None
