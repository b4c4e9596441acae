"""Tasks on a Ray cluster: Ray Core alone, imported when it is asked for."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from dti_pipeline.config import ExecutionConfig
from dti_pipeline.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def each(
    function: Callable[[T], R],
    tasks: Sequence[T],
    config: ExecutionConfig,
    died: Callable[[int], InputError],
) -> Iterator[tuple[int, R]]:
    """Number and result of each task, as they end.

    Raises InputError where Ray is not installed, where no cluster is at ``execution.address`` and where no machine of
    it has the memory of a task; ``died`` of the task that dies again and again; else what the task raised.
    """
    with connected(config) as ray:
        _check_memory(ray, config)
        remote = ray.remote(function).options(
            num_cpus=1, memory=_bytes(config), max_retries=config.retries, retry_exceptions=False
        )
        waiting = {remote.remote(task): number for number, task in enumerate(tasks)}
        try:
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                number = waiting.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except ray.exceptions.RayError as error:  # its process crashed, ran out of memory, or lost its machine
                    raise died(number) from error
                yield number, result
        finally:
            _end(ray, list(waiting))


def _end(ray: Any, waiting: list[Any]) -> None:
    """End tasks that nobody waits for any more: they would write into a folder that is being removed."""
    for task in waiting:
        ray.cancel(task, force=True)
    if waiting:
        ray.wait(waiting, num_returns=len(waiting), timeout=60)


@contextmanager
def connected(config: ExecutionConfig) -> Iterator[Any]:
    """Ray, connected to the cluster at ``execution.address`` or to one that is started here, which ends with the
    context; where it is connected already it stays so."""
    # Read when Ray is imported or started: nothing is reported, and a task that runs out of memory is tried again as
    # often as one that dies, not for ever.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(config.retries))
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "params key `execution.engine` is ray, which is not installed: `pip install dti-pipeline[ray]`, or local"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if config.address is None:
        here = {"num_cpus": config.workers, "include_dashboard": False, "_memory": config.workers * _bytes(config)}
        ray.init("local", **quiet, **here)
    else:
        try:
            _knock(config.address)
            ray.init(config.address, **quiet)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                f"params key `execution.address` is {config.address!r}, where no Ray cluster answers, or one with"
                f" another token (RAY_AUTH_TOKEN): {error}"
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=10).close()


def _bytes(config: ExecutionConfig) -> int:
    return int(config.memory_gib * 2**30)


def _check_memory(ray: Any, config: ExecutionConfig) -> None:
    """Raise InputError where a task would wait for ever for a machine that is large enough."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = max((machine.get("memory", 0.0) for machine in machines if machine.get("CPU", 0) >= 1), default=0.0)
    if most < _bytes(config):
        raise InputError(
            f"params key `execution.memory_gib` is {config.memory_gib:g}, more than any machine of the Ray cluster has:"
            f" {most / 2**30:.1f}"
        )
