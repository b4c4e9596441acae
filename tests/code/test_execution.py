"""Tasks in processes of this machine: order, deaths and refusals."""

from __future__ import annotations

import gzip
import importlib.util
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dti_pipeline.config import Config, ExecutionConfig, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.events.ingest import ingest
from dti_pipeline.execution import tasks
from dti_pipeline.paths import Paths
from tests.code import workers
from tests.code.raw_logs import settings
from tests.code.test_events_buckets import GLOBAL, made_in, write_log

pytestmark = pytest.mark.slow  # whole stages: `make test` runs them

TWO = ExecutionConfig(workers=2, retries=1)


def test_one_worker_is_this_process() -> None:
    found = tasks.run(workers.process_of, [3, 1, 2], ExecutionConfig(), "tasks")
    assert found == [(number, os.getpid()) for number in (3, 1, 2)]
    assert tasks.run(workers.process_of, [], TWO, "tasks") == []


@pytest.mark.parametrize(("config", "said"), [(ExecutionConfig(), []), (TWO, [f"tasks: {n} of 3" for n in (1, 2, 3)])])
def test_how_many_are_done_is_said_only_of_what_runs_elsewhere(
    config: ExecutionConfig, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, tasks.log.name):
        tasks.run(workers.process_of, [3, 1, 2], config, "tasks")
    assert caplog.messages == said


def test_a_death_is_survived_and_answers_come_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = [(tmp_path / "died", number) for number in range(5)]
    assert tasks.run(workers.die_once, work, TWO, "squares") == [0, 1, 4, 9, 16]
    assert "the process of task 2 has died" in caplog.text


def test_a_task_that_dies_again_and_again_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"^numbers: the process of task 2 of 3 died 2 times, .*memory_gib`"):
        tasks.run(workers.die, [0, 1, 2], TWO, "numbers")


def test_what_a_task_raises_is_raised_here() -> None:
    with pytest.raises(InputError, match=r"^the second task has nothing to read$"):
        tasks.run(workers.refuse, [0, 1, 2], TWO, "numbers")


def test_two_processes_make_the_bytes_of_one(home: Paths) -> None:
    write_log(home.home / "log")
    log = settings("log", split=GLOBAL)
    whole = made_in(1, log, home)
    for part in home.staged.iterdir():
        part.unlink()
    assert made_in(3, replace(log, execution=TWO), home) == whole


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_file_is_refused_in_its_sentence_wherever_it_is_parsed(home: Paths, workers: int) -> None:
    write_log(home.home / "log")
    lines = "".join(["user_id,item_id,rating,timestamp\n", *(f"u{i},i{i},3,{i}\n" for i in range(9999))])
    whole = gzip.compress(lines.encode())
    (home.home / "log" / "d.csv.gz").write_bytes(whole[:-100])
    log = replace(settings("log", split=GLOBAL), execution=ExecutionConfig(workers=workers))
    with pytest.raises(InputError, match=r"d\.csv\.gz is not a whole gzip file"):
        ingest(log, home)


def test_too_little_memory_for_a_task_names_its_key(home: Paths) -> None:
    write_log(home.home / "log")
    log = replace(settings("log", split=GLOBAL), execution=ExecutionConfig(workers=2, memory_gib=1e-3))
    with pytest.raises(InputError, match=r"`execution.memory_gib` allows 1MiB, which is too little"):
        ingest(log, home)


def test_an_address_is_a_clusters() -> None:
    with pytest.raises(InputError, match=r"`execution.address` must be null where execution.engine is local"):
        from_plain(Config, {"execution": {"address": "auto"}})


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_that_is_not_installed_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"`execution.engine` is ray, which is not installed: `pip install"):
        tasks.run(workers.process_of, [1], ExecutionConfig(engine="ray"), "tasks")
