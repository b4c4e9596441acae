"""A backtest learns nothing early and nothing twice, goes on where it was killed, and costs what its targets cost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from dti_pipeline import config as configuration
from dti_pipeline.backtest import run
from dti_pipeline.backtest.report import BacktestReport, Day
from dti_pipeline.cli import app
from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from tests.daily_logs import DAY, HOUR, START, lines, made, newest, numbers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def eight_days(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home with the tokens of eight days; to be copied."""
    paths = Paths(tmp_path_factory.mktemp("eight") / "home")
    made(paths, lines(range(8)))
    return paths


@pytest.fixture
def ready(eight_days: Paths, tmp_path: Path) -> tuple[Config, Paths]:
    shutil.copytree(eight_days.home, tmp_path / "copy")
    paths = Paths(tmp_path / "copy")
    return configuration.load(paths.params), paths


def assert_same(one: Paths, other: Paths) -> None:
    here, there = newest(one), newest(other)
    assert here.keys() == there.keys()
    assert [name for name in here if not torch.equal(here[name], there[name])] == []


@pytest.fixture
def learnt(monkeypatch: pytest.MonkeyPatch) -> list[Rows]:
    """Rows that were trained on, in turn."""
    seen: list[Rows] = []
    fit = run.fit

    def listen(model: Any, optimizer: Any, rows: Rows, *rest: Any) -> Any:
        seen.append(rows)
        return fit(model, optimizer, rows, *rest)

    monkeypatch.setattr(run, "fit", listen)
    return seen


@pytest.mark.parametrize("paradigm", ["dti", "sliding_window"])
def test_no_target_and_no_label_of_the_future_is_learnt_and_none_twice(
    ready: tuple[Config, Paths], learnt: list[Rows], paradigm: str
) -> None:
    config, paths = ready
    config = replace(config, backtest=replace(config.backtest, fresh=False))
    report = run.backtest(config, paths, paradigm)
    store = TokenStore.open(paths.tokens)
    time = pq.read_table(paths.events / "interactions.parquet")["timestamp"].to_numpy()
    ends = START + DAY * np.arange(2, 8)  # of the days learnt
    assert [day.day for day in report.days] == [f"2020-01-0{day}" for day in range(2, 8)]
    assert len(learnt) == len(ends)
    targets: list[int] = []
    labels_read = 0
    for rows, end in zip(learnt, ends, strict=True):
        layout = rows.assemble(np.arange(len(rows)))
        own = layout.target[layout.target >= 0]
        targets += own.tolist()
        assert (time[own] + 5 * HOUR < end).all()
        for row, place in zip(*np.nonzero(layout.kind == Kind.SUM), strict=True):
            target = layout.target[row, place]
            history = target - store.position[target]
            here = (layout.document[row] == layout.document[row, place]) & (layout.kind[row] == Kind.LABEL)
            told = here & (layout.interaction[row] < layout.known[row, place])
            first = target - layout.interaction[row, place]  # the prompt's
            read = first + layout.interaction[row][told]
            assert first >= history
            assert (time[read] + 5 * HOUR <= time[target]).all()
            assert (time[read] + 5 * HOUR < end).all()
            labels_read += len(read)
    assert labels_read > len(targets)
    assert len(targets) == len(set(targets)) == report.targets_learnt
    known = time + 5 * HOUR < ends[-1]
    assert set(targets) == set(np.flatnonzero((store.request >= 1) & known))
    assert [day.judged for day in report.days] == [8 * 4] * 6


def killed(at: int, how: Callable[[], None]) -> run.Heard:
    """Something that hears of days, and does it at the one of that number."""
    heard: list[Day] = []

    def hear(day: Day, now: bool) -> None:
        if now:
            heard.append(day)
            if len(heard) == at:
                how()

    return hear


def crash() -> None:
    raise MemoryError("the machine went away")


def test_killed_and_continued_is_left_alone(ready: tuple[Config, Paths], tmp_path: Path, learnt: list[Rows]) -> None:
    config, paths = ready
    other = Paths(tmp_path / "alone")
    shutil.copytree(paths.home, other.home)
    alone = run.backtest(config, other, "dti")
    with pytest.raises(MemoryError):
        run.backtest(config, paths, "dti", killed(2, crash))
    with pytest.raises(CheckFailed, match="the backtest of dti was interrupted; run it again to go on"):
        run.backtest(config, paths, "dti", killed(1, lambda: os.kill(os.getpid(), signal.SIGINT)))
    learnt.clear()
    report = run.backtest(config, paths, "dti")
    assert len(learnt) == 2 * 3  # of each day that was left, with a fresh start beside it
    assert numbers(report) == numbers(alone)
    assert_same(paths, other)
    learnt.clear()
    assert numbers(run.backtest(config, paths, "dti")) == numbers(alone)
    assert not learnt, "nothing was left to do"
    assert {path.name for path in paths.backtest("dti").iterdir()} == {
        "manifest.json", "report.json", "days.csv", *(f"{name}_by_day.{kind}" for name in ("auc", "cost")
                                                       for kind in ("png", "svg"))}  # fmt: skip


@pytest.mark.parametrize(
    ("late", "sentence", "again"),
    [
        ("u3,7,5,1578308400", "2020-01-05 or the next day have changed.*: the backtest went on from that day", 3),
        ("u3,7,5,1578146400", "2020-01-03 or the next day .*no longer kept: the backtest began anew", 6),
    ],
    ids=["of a late day", "of an old day"],
)
def test_a_late_row_costs_the_days_since_or_a_new_beginning(
    ready: tuple[Config, Paths], tmp_path: Path, learnt: list[Rows], late: str, sentence: str, again: int
) -> None:
    config, paths = ready
    run.backtest(config, paths, "dti")
    made(paths, [*lines(range(8)), late])
    learnt.clear()
    report = run.backtest(config, paths, "dti")
    assert len(learnt) == 2 * again
    assert report.note is not None
    assert re.search(sentence, report.note)
    other = Paths(tmp_path / "alone")
    alone = run.backtest(made(other, [*lines(range(8)), late]), other, "dti")
    assert numbers(report) == numbers(alone)
    assert_same(paths, other)


def test_a_new_day_costs_that_day(ready: tuple[Config, Paths], tmp_path: Path, learnt: list[Rows]) -> None:
    config, paths = ready
    run.backtest(config, paths, "dti")
    made(paths, lines(range(9)))
    learnt.clear()
    report = run.backtest(config, paths, "dti")
    assert (len(learnt), report.note) == (2, None)
    other = Paths(tmp_path / "alone")
    assert numbers(report) == numbers(run.backtest(made(other, lines(range(9))), other, "dti"))


def test_a_day_costs_what_its_targets_cost_however_long_histories_are(home: Paths) -> None:
    costs = []
    for begin in (8, 4, 0):
        changed = {"backtest": {"first_day": "2020-01-10", "fresh": True}, "split": {"feedback_delay": None}}
        config = made(Paths(home.home / str(begin)), lines(range(begin, 12)), **changed)
        costs.append(run.backtest(config, Paths(home.home / str(begin)), "dti").days[1])
    assert [day.learnt.targets for day in costs] == [32] * 3
    assert len({day.learnt.tokens for day in costs}) == 1
    fresh = [day.fresh_learnt.tokens for day in costs if day.fresh_learnt]
    assert fresh[2] > 1.5 * fresh[1] > 2 * fresh[0], "a fresh start costs the whole log"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"training": {"average_decay": 0.9}}, r"`training\.average_decay` must be 0 for `dti backtest`, not 0\.9"),
        ({"training": {"processes": 2}}, r"`training\.processes` must be 1 for `dti backtest`, not 2"),
        ({"packing": {"max_targets": 9}}, r"`packing\.max_targets` must be null for `dti backtest`, not 9"),
        ({"events": {"columns": {"timestamp": None}}, "split": {"rule": "user_order", "feedback_delay": None}},
         "the log has no timestamps, which `dti backtest` needs to tell its days"),
        ({"split": {"feedback_until": "test_start"}}, r"which `split\.feedback_until: test_start` forbids"),
        ({"backtest": {"period_days": 36500, "first_day": None}}, "a backtest needs two periods"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(home: Paths, changed: dict[str, Any], sentence: str) -> None:
    config = made(home, lines(range(3)), **changed)
    with pytest.raises(InputError, match=sentence) as refused:
        run.backtest(config, home, "dti")
    assert "\n" not in str(refused.value)


def test_other_tokens_than_of_these_events_are_refused(ready: tuple[Config, Paths]) -> None:
    config, paths = ready
    (paths.home / "log.csv").write_text("\n".join(["user_id,item_id,rating,timestamp", *lines(range(7)), ""]))
    ingest(config, paths)
    with pytest.raises(InputError, match="run `dti tokenize` again"):
        run.backtest(config, paths, "dti")


def test_the_command_shows_the_table_of_days(home: Paths) -> None:
    made(home, lines(range(4)), split={"feedback_delay": None})
    done = CliRunner().invoke(app, ["backtest", "--paradigm", "dti_isolated", "--set", "backtest.fresh=false"])
    assert done.exit_code == 0, done.output
    assert "2020-01-03" in done.stdout
    assert "mean AUC" in done.stdout
    again = CliRunner().invoke(
        app, ["backtest", "--paradigm", "dti_isolated", "--set", "backtest.fresh=false", "--json"]
    )
    report = from_plain(BacktestReport, json.loads(again.stdout.splitlines()[-1]))
    assert [day.day for day in report.days] == ["2020-01-02", "2020-01-03"]
    assert report.staleness["3"].days == 0
