"""What runs without a person: when the sensor asks, what is refreshed, and that nothing of it trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from dti_pipeline.definitions import build, defs
from dti_pipeline.defs import processes
from dti_pipeline.defs.automation import SHARED, new_log_files, nightly, prepare_log
from dti_pipeline.defs.checks import CHECKS
from dti_pipeline.paradigms import names
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import STAGES

TRAINED = ("sliding_window", "dti")
OF_STAGE = {stage.name: stage.asset for stage in STAGES}
PARTITIONED = {stage.asset for stage in STAGES if stage.per_paradigm}


# The sensor on the raw log.


@pytest.fixture
def log(home: Paths) -> Path:
    """A folder of raw files that params.yaml names."""
    home.params.write_text("events: {source: table, path: data/raw/clicks}")
    folder = home.raw / "clicks"
    folder.mkdir(parents=True)
    return folder


class Sensor:
    """The sensor as Dagster's daemon asks it: with the cursor it left."""

    cursor: str | None = None

    def look(self) -> dg.RunRequest | str:
        context = dg.build_sensor_context(cursor=self.cursor)
        answer = new_log_files(context)
        self.cursor = context.cursor
        return answer if isinstance(answer, dg.RunRequest) else answer.skip_message


@pytest.fixture
def sensor() -> Sensor:
    return Sensor()


def test_new_files_are_asked_for_once_when_they_have_settled(log: Path, sensor: Sensor) -> None:
    (log / "monday.csv").write_text("user_id,item_id,rating,timestamp\n")
    assert "waiting for it to be the same" in sensor.look()
    first = sensor.look()
    assert isinstance(first, dg.RunRequest)
    assert first.tags["log.files"] == "1"
    assert [sensor.look() for _ in range(2)] == ["nothing new at data/raw/clicks"] * 2
    (log / "tuesday.csv").write_text("user_id,item_id,rating,timestamp\n")
    assert "waiting" in sensor.look()
    second = sensor.look()
    assert isinstance(second, dg.RunRequest)
    assert second.run_key != first.run_key


def test_a_file_that_is_still_growing_is_waited_for(log: Path, sensor: Sensor) -> None:
    for line in range(4):
        with (log / "big.csv").open("a") as file:
            file.write(f"u,i,{line},0\n")
        assert "waiting" in sensor.look()
    assert isinstance(sensor.look(), dg.RunRequest)


def test_a_change_that_keeps_the_size_is_seen(log: Path, sensor: Sensor) -> None:
    file = log / "clicks.csv"
    file.write_text("a")
    sensor.look()
    sensor.look()
    file.write_text("b")
    os.utime(file, (1, 1))
    assert "waiting" in sensor.look()
    assert isinstance(sensor.look(), dg.RunRequest)


@pytest.mark.parametrize("name", ["big.csv.part", ".big.csv", "big.csv.tmp", ".aside/big.csv"])
def test_what_is_not_finished_by_its_name_does_not_count(log: Path, sensor: Sensor, name: str) -> None:
    (log / name).parent.mkdir(exist_ok=True)
    (log / name).write_text("half")
    assert "no file yet" in sensor.look()


def test_going_back_to_an_earlier_state_is_not_asked_for_twice_in_a_row(log: Path, sensor: Sensor) -> None:
    (log / "a.csv").write_text("a")
    sensor.look()
    asked = sensor.look()
    (log / "b.csv").write_text("b")
    sensor.look()
    (log / "b.csv").unlink()
    assert isinstance(asked, dg.RunRequest)
    assert sensor.look() == "nothing new at data/raw/clicks"


def test_the_log_that_is_made_here_is_not_watched(home: Paths, sensor: Sensor) -> None:
    home.synthetic.mkdir(parents=True)
    (home.synthetic / "log.csv").write_text("x")
    assert "events.source is synthetic" in sensor.look()


def test_wrong_params_are_a_reason_not_a_crash(home: Paths, sensor: Sensor) -> None:
    home.params.write_text("event: {}")
    assert "did you mean" in sensor.look()


def test_what_sensor_and_schedule_start_never_trains() -> None:
    assert new_log_files.job_name == nightly.job_name == prepare_log.name
    assert SHARED == ["log", "events", "checks", "tokens"]
    job = defs.resolve_job_def("prepare_log")
    assert {key.to_user_string() for key in job.asset_layer.executable_asset_keys} == set(SHARED)


def test_nothing_is_on_until_somebody_turns_it_on() -> None:
    sensors = build(["dti"]).sensors
    on = {sensor.name for sensor in sensors if sensor.default_status == dg.DefaultSensorStatus.RUNNING}
    assert on == {"killed_runs", "log_days"}  # they start nothing
    assert {sensor.name for sensor in sensors} - on == {"new_log_files", "refresh_cheap_stages", "new_days"}
    assert nightly.default_status == dg.DefaultScheduleStatus.STOPPED


# The refresh of what is cheap.


class Graph:
    """The asset graph as Dagster's daemon sees it from tick to tick; makes nothing, only says that it was made."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor = instance, None
        for name, asset in OF_STAGE.items():
            if name != "compare":
                self.made(asset)
        self.made("comparison")
        assert self.wanted() == set(), "what was just made needs no refresh"

    def made(self, asset: str, *partitions: str) -> None:
        for partition in (partitions or TRAINED) if asset in PARTITIONED else (None,):
            self.instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition))
        stage = next(stage for stage in STAGES if stage.asset == asset)
        for check in CHECKS[stage.name]:
            passed = dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey(asset), check_name=check.name, passed=True, metadata={}, blocking=check.blocking
            )
            self.instance.report_runless_asset_event(passed)

    def wanted(self) -> set[str]:
        """What a tick asks for: an asset, or asset@paradigm."""
        tick = dg.evaluate_automation_conditions(defs, self.instance, cursor=self.cursor)
        self.cursor = tick.cursor
        found = set()
        for node in defs.resolve_asset_graph().asset_nodes:
            for partition in tick.get_requested_partitions(node.key):
                found.add(f"{node.key.to_user_string()}@{partition}" if partition else node.key.to_user_string())
        return found


@pytest.fixture
def graph(instance: dg.DagsterInstance) -> Graph:
    return Graph(instance)


def test_a_new_log_refreshes_what_is_cheap_and_not_the_models(graph: Graph) -> None:
    graph.made("log")
    asked = set()
    for _ in range(4):
        wanted = graph.wanted()
        asked |= wanted
        for asset in ("events", "checks", "tokens", "shards"):
            if any(name.partition("@")[0] == asset for name in wanted):
                graph.made(asset)
    assert asked == {"events", "checks", "tokens", "shards@sliding_window", "shards@dti"}
    assert graph.wanted() == set()


def test_a_trained_model_is_evaluated_and_compared(graph: Graph) -> None:
    graph.made("model", "dti")
    assert graph.wanted() == {"evaluation@dti"}
    graph.made("evaluation", "dti")
    assert graph.wanted() == {"comparison"}
    graph.made("comparison")
    assert graph.wanted() == {"item_states"}, "of the champion that it has chosen"
    graph.instance.report_runless_asset_event(dg.AssetMaterialization("item_states"))
    assert graph.wanted() == set()


def test_the_first_model_of_a_paradigm_is_evaluated_too(graph: Graph) -> None:
    graph.made("model", "sliding_window")
    assert graph.wanted() == {"evaluation@sliding_window"}


def test_a_paradigm_that_nobody_asked_for_is_not_packed(graph: Graph) -> None:
    graph.made("tokens")
    assert graph.wanted() == {f"shards@{paradigm}" for paradigm in TRAINED}
    assert set(TRAINED) < set(names())


def test_a_failed_validation_holds_the_refresh_back(graph: Graph) -> None:
    failed = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("checks"), check_name="raw_rows", passed=False, metadata={}, blocking=True
    )
    graph.instance.report_runless_asset_event(dg.AssetMaterialization("checks"))
    graph.instance.report_runless_asset_event(failed)
    assert graph.wanted() == set()


def test_what_was_never_made_is_not_begun(instance: dg.DagsterInstance) -> None:
    assert dg.evaluate_automation_conditions(defs, instance).total_requested == 0


# Runs whose process was killed.


def going_on(instance: dg.DagsterInstance, tags: dict[str, str], status: dg.DagsterRunStatus) -> str:
    run = dg.DagsterRun(job_name="one_paradigm", tags=tags, status=status)
    return instance.add_run(run).run_id


def test_a_run_whose_process_is_gone_is_ended(instance: dg.DagsterInstance) -> None:
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = processes.process(str(gone.pid))
    assert process is not None
    run = going_on(instance, {processes.PROCESS: process}, dg.DagsterRunStatus.STARTED)
    cancelled = going_on(instance, {processes.PROCESS: process}, dg.DagsterRunStatus.CANCELING)
    assert processes.end_killed(instance) == []
    gone.kill()
    gone.wait()
    assert set(processes.end_killed(instance)) == {run, cancelled}
    assert instance.get_run_by_id(run).status == dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(cancelled).status == dg.DagsterRunStatus.CANCELED
    assert processes.end_killed(instance) == []


def test_a_process_that_took_the_number_of_one_that_is_gone_is_not_taken_for_it(instance: dg.DagsterInstance) -> None:
    host, number, started = processes.process("self").split(":")
    run = going_on(instance, {processes.PROCESS: f"{host}:{number}:{int(started) - 1}"}, dg.DagsterRunStatus.STARTED)
    assert processes.end_killed(instance) == [run]


@pytest.mark.parametrize("tags", [{}, {processes.PROCESS: "another-machine:1:1"}])
def test_what_this_machine_cannot_know_is_left_alone(instance: dg.DagsterInstance, tags: dict[str, str]) -> None:
    going_on(instance, tags, dg.DagsterRunStatus.STARTED)
    assert processes.end_killed(instance) == []
    assert (
        processes.killed_runs(dg.build_sensor_context(instance=instance)).skip_message == "every run's process is there"
    )
