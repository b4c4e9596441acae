"""A log that grows goes through every stage: its targets are trained, judged and certified as those of one log."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline import audit, pipeline
from dti_pipeline.backtest import days, run
from dti_pipeline.certify import certify
from dti_pipeline.config import Config
from dti_pipeline.evaluation import interactions
from dti_pipeline.evaluation.floors import floors
from dti_pipeline.events import published
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from tests import daily_logs
from tests import growing_logs as growing

pytestmark = pytest.mark.slow

PARADIGMS = ("sliding_window", "dti_isolated")
STAGES = (*pipeline.STAGES[1:5], pipeline.TRAIN, pipeline.EVALUATE, pipeline.COMPARE)
OWN = ("user_id", "item_id", "timestamp", "rating")


def config(loads_from: str | None = growing.FIRST_LOAD) -> Config:
    """By the log's own split, so that loads and one log have the same targets."""
    made = growing.config(
        loads_from,
        events={"columns": {"item_text": "title", "split": "split"}},
        split={"rule": "column", "min_history": 2, "feedback_delay": 7200.0},
        model={"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 32},
        training={
            "device": "cpu",
            "epochs": 3,
            "targets_per_step": 16,
            "tokens_per_batch": 2048,
            "evaluations": 0,
            "learning_rate": 0.01,
        },
        evaluation={"bootstrap_samples": 10},
        backtest={"paradigms": ["dti"], "first_day": "2020-01-03"},
    )
    return replace(made, paradigms=PARADIGMS)


def through(config: Config, paths: Paths, stages: tuple[Any, ...] = STAGES) -> None:
    for stage in stages:
        for paradigm in PARADIGMS if stage.per_paradigm else (None,):
            pipeline.execute(stage, config, paths, paradigm)


def write(home: Paths, day: range) -> None:
    """Two days train, one validates, the others test."""
    growing.write(home, day)
    for number in day:
        path = home.home / "log" / growing.name(number)
        split = "train" if number < 2 else "validation" if number == 2 else "test"
        header, *rows = path.read_text().splitlines()
        path.write_text("\n".join([f"{header},split", *(f"{row},{split}" for row in rows), ""]))


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home whose log came in four parts."""
    home = Paths(tmp_path_factory.mktemp("grown"))
    for day in (range(4), range(4, 5), range(5, 6)):
        write(home, day)
        through(config(), home, STAGES[:4])
    write(home, range(6, 7))
    through(config(), home)
    return home


@pytest.fixture(scope="module")
def one(grown: Paths, tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """The same log, read as one."""
    home = growing.afresh(grown, tmp_path_factory.mktemp("one") / "home")
    through(config(None), home, STAGES[:4])
    return home


def keys(home: Paths, rows: Any) -> list[tuple[Any, ...]]:
    table = interactions.table(home, list(OWN)).take(pa.array(rows)).to_pydict()
    return list(zip(*(table[name] for name in OWN), strict=True))


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_each_target_is_judged_once(grown: Paths, one: Paths, paradigm: str) -> None:
    judged = pq.read_table(grown.evaluation(paradigm) / "predictions.parquet").to_pydict()
    log = interactions.table(one, [*OWN, "split", "request"]).to_pylist()
    wanted = [tuple(row[name] for name in OWN) for row in log if row["split"] == "test" and row["request"] >= 2]
    assert sorted(keys(grown, judged["row"])) == sorted(wanted)


def test_floors_are_those_of_one_log(grown: Paths, one: Paths) -> None:
    found = []
    for home in (grown, one):
        log = interactions.read(home, 2)
        rows = np.flatnonzero((np.array(log.table["split"]) == "test") & (log.request >= 2))
        values = floors(log, rows, 4)
        found.append({name: dict(zip(keys(home, rows), value, strict=True)) for name, value in values.items()})
    assert found[0].keys() == found[1].keys()
    for name, there in found[1].items():
        assert found[0][name] == pytest.approx(there), name


def test_days_of_a_backtest_have_the_targets_of_one_log(grown: Paths, one: Paths) -> None:
    of_days = []
    for home in (grown, one):
        found = days.read(config(), home, TokenStore.open(home.tokens))
        of_days.append({
            day: [sorted(keys(home, rows)) for rows in (found.to_learn(day), found.to_judge(day))]
            for day in range(found.first, found.last)
        })  # fmt: skip
    assert len(of_days[0]) == 4
    assert of_days[0] == of_days[1]


def test_a_backtest_learns_the_day_that_came_and_no_other_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, learnt = Paths(tmp_path / "home"), []
    fit = run.fit

    def listen(model: Any, optimizer: Any, rows: Rows, *rest: Any) -> Any:
        learnt.append(int(rows.targets().sum()))
        return fit(model, optimizer, rows, *rest)

    monkeypatch.setattr(run, "fit", listen)
    for number in (range(6), range(6, 7)):
        write(home, number)
        through(config(), home, STAGES[:3])
        report = run.backtest(config(), home, "dti")
    other = growing.afresh(home, tmp_path / "at once")
    through(config(), other, STAGES[:3])
    assert len(report.days) == 4
    assert len(learnt) == 4, "a day was learnt twice, or not at all"
    assert daily_logs.numbers(report) == daily_logs.numbers(run.backtest(config(), other, "dti"))
    assert learnt[4:] == learnt[:4]


def test_the_model_is_certified(grown: Paths) -> None:
    found = certify.certify(config(), grown, certify.Task(grown.model("dti_isolated"), "dti_isolated", 12))
    assert found.passed, found.sentence
    assert any(proof.what.startswith("rows for context are rows") and proof.cases for proof in found.proofs)


def test_an_audit_finds_a_load_that_is_not_of_the_log(grown: Paths, tmp_path: Path) -> None:

    shutil.copytree(grown.home, tmp_path / "copy")
    home = Paths(tmp_path / "copy")
    path = published.interactions(home.events)[2]
    table = pq.read_table(path)
    rows = table.to_pylist()
    for row in rows:
        row["split"] = "test"
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    broken = {check.rule for check in audit.audit(home.home, home.model("dti_isolated")) if check.broken}
    assert "rows for context are rows of an earlier load, and no row is a load's own twice" in broken
