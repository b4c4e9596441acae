"""Days of a backtest through Dagster: the command line's numbers, in order, each once; what the sensors ask for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import torch

from dti_pipeline import artifacts, definitions
from dti_pipeline import config as configuration
from dti_pipeline.backtest import run
from dti_pipeline.backtest.report import BacktestReport, Day
from dti_pipeline.defs import all_days, days
from dti_pipeline.errors import Interrupted
from dti_pipeline.paths import Paths
from tests.daily_logs import lines, made, newest, numbers
from tests.project import ROOT

#: With days for one paradigm.
DEFS = definitions.build(["dti"])
DAYS = [f"2020-01-0{day}" for day in range(2, 7)]
ASSET = days.key("dti")
PLAIN = {"backtest": {"fresh": False}}


@pytest.fixture(scope="module")
def six_days(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home with the tokens of a log whose days 2 to 6 learn; to be copied."""
    paths = Paths(tmp_path_factory.mktemp("six") / "home")
    made(paths, lines(range(7)), **PLAIN)
    return paths


@pytest.fixture
def ready(six_days: Paths, home: Paths) -> Paths:
    shutil.copytree(six_days.home, home.home, dirs_exist_ok=True)
    return home


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        days.follow(instance, DAYS)
        yield instance


def launch(instance: dg.DagsterInstance, first: str, last: str) -> dg.ExecuteInProcessResult:
    """One run of a range of days, as a backfill makes it."""
    return DEFS.resolve_implicit_global_asset_job_def().execute_in_process(
        asset_selection=[ASSET],
        instance=instance,
        tags={days.FIRST: first, days.LAST: last},
        raise_on_error=False,
    )


def told(instance: dg.DagsterInstance) -> list[tuple[str | None, Any]]:
    """Days in the order in which they were told, with their AUC."""
    found = instance.fetch_materializations(ASSET, limit=99, ascending=True).records
    events = [record.asset_materialization for record in found]
    return [(event.partition, event.metadata["auc"].value) for event in events if event is not None]


def sentence(result: dg.ExecuteInProcessResult) -> str:
    (failed,) = (event for event in result.all_events if event.is_step_failure)
    failure = failed.step_failure_data.user_failure_data
    assert failure is not None
    return str(failure.description)


@pytest.mark.slow
def test_days_through_dagster_are_those_of_the_command_line(
    ready: Paths, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Paths(tmp_path / "cli")
    shutil.copytree(ready.home, other.home)
    alone = run.backtest(configuration.load(other.params), other, "dti")
    assert [day.day for day in alone.days] == DAYS

    assert launch(instance, DAYS[0], DAYS[2]).success
    result = launch(instance, DAYS[3], DAYS[4])
    assert result.success
    assert [(day, f"{auc:.4f}") for day, auc in told(instance)] == [
        (day.day, f"{day.score.auc:.4f}") for day in alone.days
    ]
    last = instance.get_latest_materialization_event(ASSET).asset_materialization
    assert last.metadata["mean_auc"].value == pytest.approx(alone.auc, abs=1e-5)
    assert "auc_by_day" in last.metadata
    assert [check.passed for check in result.get_asset_check_evaluations()] == [alone.auc > 0.5]
    report = artifacts.read(ready.backtest("dti"), "backtest", BacktestReport).report
    assert numbers(report) == numbers(alone)
    here, there = newest(ready), newest(other)
    assert here.keys() == there.keys()
    assert [name for name in here if not torch.equal(here[name], there[name])] == []

    monkeypatch.setattr(run, "fit", lambda *_: pytest.fail("trained again"))
    assert launch(instance, DAYS[1], DAYS[1]).success
    assert [day for day, _ in told(instance)] == [*DAYS, DAYS[1]]
    assert numbers(artifacts.read(ready.backtest("dti"), "backtest", BacktestReport).report) == numbers(alone)


def test_a_day_out_of_order_is_one_sentence_and_trains_nothing(ready: Paths, instance: dg.DagsterInstance) -> None:
    expected = "2020-01-04 starts from the weights of 2020-01-03, which is not trained: days are trained in order, and"
    assert sentence(launch(instance, DAYS[2], DAYS[3])) == f"{expected} 2020-01-02 is the next of dti"
    days.follow(instance, [*DAYS, "2020-01-07"])
    assert sentence(launch(instance, "2020-01-07", "2020-01-07")) == (
        "the log has no day 2020-01-07 to learn and a next one to judge it on: its days are 2020-01-02 to 2020-01-06"
        " (params keys `backtest.period_days`, `backtest.first_day`)"
    )
    assert told(instance) == []
    assert not list(ready.backtest_states("dti").rglob("day.json"))


@pytest.mark.slow
def test_a_changed_day_is_trained_anew_with_all_days_that_were(ready: Paths, instance: dg.DagsterInstance) -> None:
    assert launch(instance, DAYS[0], DAYS[4]).success
    made(ready, [*lines(range(7)), "u3,7,5,1578146400"], **{"backtest": {"fresh": False, "late_days": 9}})  # 4 January
    assert launch(instance, DAYS[3], DAYS[3]).success
    assert [day for day, _ in told(instance)][len(DAYS) :] == DAYS[1:], "2020-01-03 is judged on the changed day"


def test_a_cancelled_run_keeps_and_tells_the_days_that_it_finished(
    ready: Paths, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, days_learnt = run.Backtest._day, []

    def cancelled(self: run.Backtest, day: int) -> Day:
        days_learnt.append(day)
        if len(days_learnt) == 3:
            instance.report_run_canceling(instance.get_runs()[0])
            raise Interrupted("the backtest of dti was interrupted; run it again to go on")
        return real(self, day)

    monkeypatch.setattr(run.Backtest, "_day", cancelled)
    run_id = launch(instance, DAYS[0], DAYS[4]).run_id
    assert instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.CANCELED
    assert [day for day, _ in told(instance)] == DAYS[:2]


# What the sensors ask for.


class Daemon:
    """Asks a sensor with the cursor that it left, and adds the partitions that it asks for."""

    def __init__(self, sensor: dg.SensorDefinition, instance: dg.DagsterInstance) -> None:
        self.sensor, self.instance, self.cursor = sensor, instance, None

    def look(self) -> list[dg.RunRequest] | str:
        context = dg.build_sensor_context(self.instance, self.cursor, definitions=DEFS)
        answer = self.sensor(context)
        self.cursor = context.cursor
        if isinstance(answer, dg.SkipReason):
            return str(answer.skip_message)
        days.apply(self.instance, answer.dynamic_partitions_requests or [])
        return list(answer.run_requests or [])


def test_partitions_follow_the_log(ready: Paths) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(days.log_days, instance)
        known = lambda: list(instance.get_dynamic_partitions(days.NAME))  # noqa: E731
        assert daemon.look() == []
        assert known() == DAYS
        assert daemon.look() == "every day of the log is there, from 2020-01-02 to 2020-01-06"
        assert daemon.look() == "the log is the same as at the last look"
        made(ready, lines(range(8)), **PLAIN)
        daemon.look()
        assert known() == [*DAYS, "2020-01-07"]
        made(ready, lines(range(6)), **PLAIN)
        daemon.look()
        assert known() == DAYS[:-1]
        made(ready, lines(range(6)), backtest={"fresh": False, "first_day": "2020-01-01"})
        daemon.look()
        daemon.look()
        assert known() == ["2020-01-01", *DAYS[:-1]]
        made(ready, lines(range(8)), backtest={"fresh": False, "first_day": "2020-01-01", "period_days": 3.0})
        daemon.look()
        assert known() == ["2020-01-01", "2020-01-04"]


def test_new_days_are_asked_for_once_where_a_backtest_has_begun(ready: Paths, instance: dg.DagsterInstance) -> None:
    daemon, partitions = Daemon(days.new_days, instance), Daemon(days.log_days, instance)
    assert daemon.look() == "no backtest of `backtest.paradigms` has begun: launch its first days as a backfill"
    assert launch(instance, DAYS[0], DAYS[4]).success
    assert daemon.look() == "the log is the same as at the last look"
    made(ready, lines(range(9)), **PLAIN)
    assert daemon.look() == "waiting for `log_days` to make the partitions the days of the log"
    partitions.look()
    (asked,) = daemon.look()
    assert asked.asset_selection == [ASSET]
    assert (asked.tags[days.FIRST], asked.tags[days.LAST]) == ("2020-01-07", "2020-01-08")
    assert daemon.look() == "the log is the same as at the last look"
    assert launch(instance, asked.tags[days.FIRST], asked.tags[days.LAST]).success
    made(ready, [*lines(range(9)), "u3,7,5,1577836800"], **PLAIN)
    assert daemon.look() == "dti: trained to 2020-01-08, the last day that has a next one"
    made(ready, lines(range(10)), backtest={"fresh": False, "paradigms": ["dti_growing"]})
    partitions.look()
    assert "no backtest of `backtest.paradigms` has begun" in daemon.look(), "dti is no longer listed"


def test_without_a_log_a_sensor_says_what_to_run(home: Paths, instance: dg.DagsterInstance) -> None:
    for sensor in (days.log_days, days.new_days):
        assert "run `dti tokenize` first" in Daemon(sensor, instance).look()


def test_a_backfill_of_all_days_is_those_that_are_left(ready: Paths, instance: dg.DagsterInstance) -> None:
    assert launch(instance, DAYS[0], DAYS[1]).success
    backfill, left = all_days.request(instance, "dti")
    assert left == DAYS[2:]
    asked = instance.get_backfill(backfill)
    assert asked is not None
    assert asked.asset_backfill_data.target_subset.get_partitions_subset(ASSET).get_partition_keys() == set(left)
    assert launch(instance, DAYS[2], DAYS[4]).success
    with pytest.raises(all_days.InputError, match="every day is trained, to 2020-01-06"):
        all_days.request(instance, "dti")


def test_a_log_that_grows_keeps_the_first_day_that_its_share_gave(ready: Paths) -> None:
    by_share = {"backtest": {"fresh": False, "first_day": None, "warmup_share": 0.3}}
    made(ready, lines(range(7)), **by_share)
    began = days.home().days.names()[0]
    run.backtest(configuration.load(ready.params), ready, "dti")
    made(ready, lines(range(14)), **by_share)
    log = days.home()
    assert log.days.names()[0] == began
    assert log.left("dti") == [f"2020-01-{day:02}" for day in range(7, 14)]
    shutil.rmtree(ready.backtest_states("dti"))
    assert days.home().days.names()[0] > began, "a new beginning asks the share again"


def test_dagster_has_days_of_the_listed_paradigms_only(
    home: Paths, instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    """Of none as the parameters come: *Materialize all* would train every day."""

    def shown(listed: str) -> tuple[set[str], set[str]]:
        home.params.write_text(listed)
        found = definitions.build(days.wanted())
        assets = {key.to_user_string() for key in found.resolve_asset_graph().get_all_asset_keys()}
        return {key for key in assets if "backtest" in key}, {sensor.name for sensor in found.sensors}

    nothing, plain = shown("{}")
    assert nothing == set()
    assert not {"log_days", "new_days"} & plain
    assert shown((ROOT / "params.yaml").read_text()) == (nothing, plain)
    assert not caplog.messages
    assert shown("backtest: {paradigms: [dtl]}") == (nothing, plain)
    assert "unknown paradigm 'dtl'" in caplog.text
    with pytest.raises(all_days.InputError, match="unknown paradigm 'dtl'"):
        all_days.request(instance, "dti")
    assert shown("backtest: {paradigms: [dti, dti_growing]}") == (
        {"backtest/dti", "backtest/dti_growing"}, plain | {"log_days", "new_days"}
    )  # fmt: skip
    with pytest.raises(all_days.InputError, match=r"`backtest\.paradigms` in params\.yaml does not list dti_isolated"):
        all_days.request(instance, "dti_isolated")
