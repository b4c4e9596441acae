"""The same tasks on a Ray cluster of several nodes, which are processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dti_pipeline.config import ExecutionConfig
from dti_pipeline.errors import InputError
from dti_pipeline.execution import tasks
from dti_pipeline.paths import Paths
from tests.code import workers
from tests.code.raw_logs import settings
from tests.code.test_events_buckets import GLOBAL, made_in, write_log

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "memory": 1 << 30})
    cluster.add_node(num_cpus=1, memory=1 << 30)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def on(cluster: Any, **more: Any) -> ExecutionConfig:
    return ExecutionConfig(engine="ray", address=cluster.address, **{"retries": 1, "memory_gib": 0.5} | more)


def test_both_nodes_make_the_bytes_of_one_piece(cluster: Any, home: Paths) -> None:
    write_log(home.home / "log")
    log = settings("log", split=GLOBAL)
    whole = made_in(1, log, home)
    assert made_in(5, replace(log, execution=on(cluster)), home) == whole


def test_a_death_is_survived_and_answers_come_in_order(cluster: Any, tmp_path: Path) -> None:
    work = [(tmp_path / "died", number) for number in range(5)]
    assert tasks.run(workers.die_once, work, on(cluster), "squares") == [0, 1, 4, 9, 16]
    assert (tmp_path / "died").exists()


def test_a_task_that_dies_again_and_again_is_a_sentence(cluster: Any) -> None:
    with pytest.raises(InputError, match=r"^numbers: the process of task 2 of 3 died 2 times, .*memory_gib`"):
        tasks.run(workers.die, [0, 1, 2], on(cluster), "numbers")


def test_what_a_task_raises_is_raised_here(cluster: Any) -> None:
    with pytest.raises(InputError, match=r"^the second task has nothing to read$"):
        tasks.run(workers.refuse, [0, 1, 2], on(cluster), "numbers")


def test_after_a_refusal_no_other_task_goes_on(cluster: Any, tmp_path: Path) -> None:
    """A folder that is removed then would not stay empty."""
    config = on(cluster)
    with tasks.engine(config):
        with pytest.raises(InputError, match=r"^the first task has nothing to read$"):
            tasks.run(workers.refuse_or_write, [(tmp_path, number) for number in range(4)], config, "files")
        time.sleep(4)
    assert not list(tmp_path.glob("* ended"))


def test_a_task_that_no_machine_can_hold_is_refused_before_it_waits_for_ever(cluster: Any) -> None:
    with pytest.raises(InputError, match=r"`execution.memory_gib` is 64, more than any machine .* has: 1.0"):
        tasks.run(workers.process_of, [0], on(cluster, memory_gib=64), "numbers")


def test_a_node_that_is_lost_takes_no_answer_with_it(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1, memory=1 << 30)
    cluster.wait_for_nodes()
    config, waiting = on(cluster), [(tmp_path, number) for number in range(6)]
    found = []
    for number, result in tasks._each(workers.slowly, waiting, config, "answers"):
        if not found:
            cluster.remove_node(node, allow_graceful=False)
        found.append((number, result))
    assert sorted(found) == [(number, number) for number in range(6)]


def test_an_address_without_a_cluster_is_a_sentence() -> None:
    config = ExecutionConfig(engine="ray", address="127.0.0.1:1")
    with pytest.raises(InputError, match=r"`execution.address` is '127.0.0.1:1', where no Ray cluster answers"):
        tasks.run(workers.process_of, [0], config, "numbers")


def test_without_an_address_ray_is_started_here_and_ended(tmp_path: Path) -> None:
    import ray

    config = ExecutionConfig(engine="ray", workers=2, memory_gib=0.25)
    assert tasks.run(workers.slowly, [(tmp_path, number) for number in range(3)], config, "answers") == [0, 1, 2]
    assert not ray.is_initialized()
