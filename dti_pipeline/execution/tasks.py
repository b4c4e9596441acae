"""One function over many tasks, in processes here or on a Ray cluster; a process that dies is survived."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing.connection import wait
from queue import SimpleQueue
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from dti_pipeline.config import ExecutionConfig
from dti_pipeline.errors import InputError
from dti_pipeline.execution import on_ray

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")


def run(function: Callable[[T], R], tasks: Sequence[T], config: ExecutionConfig, what: str) -> list[R]:
    """``function(task)`` of each task, in their order, whatever order they end in.

    ``function`` is one of a module, and tasks and results can be pickled: they are small, and name files that every
    machine reaches by the same path. A task may be run again after a part of it was done, so it writes its files aside
    and renames them. ``what`` says in a word or two what is made. An exception of a task ends the run. Raises
    InputError for a task whose process died ``execution.retries`` times and once more.
    """
    if not tasks:
        return []
    results: dict[int, R] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task(what, total=len(tasks))
        for number, result in _each(function, tasks, config, what):
            results[number] = result
            bar.advance(shown)
            if len(tasks) > 1:
                log.info("%s: %d of %d", what, len(results), len(tasks))
    return [results[number] for number in range(len(tasks))]


def engine(config: ExecutionConfig) -> AbstractContextManager[object]:
    """What several calls of :func:`run` share: one connection to Ray."""
    return on_ray.connected(config) if config.engine == "ray" else nullcontext()


def several(config: ExecutionConfig) -> bool:
    """Whether tasks run outside this process."""
    return config.engine == "ray" or config.workers > 1


def _each(
    function: Callable[[T], R], tasks: Sequence[T], config: ExecutionConfig, what: str
) -> Iterator[tuple[int, R]]:
    """Number and result of each task, as they end."""
    died = partial(_died, what, len(tasks), config)
    if config.engine == "ray":
        return on_ray.each(function, tasks, config, died)
    if config.workers == 1:
        return ((number, function(task)) for number, task in enumerate(tasks))
    return _in_processes(function, tasks, config, died)


def _in_processes(
    function: Callable[[T], R], tasks: Sequence[T], config: ExecutionConfig, died: Callable[[int], InputError]
) -> Iterator[tuple[int, R]]:
    """Each worker is a pool of one process, so that a death is that of one known task and leaves the others alone."""
    workers = min(config.workers, len(tasks))
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
    for _ in range(workers):
        idle.put(_one_process())

    def attempt(number: int) -> R:
        for _ in range(config.retries + 1):
            worker = idle.get()
            try:
                return worker.submit(function, tasks[number]).result()
            except BrokenProcessPool:
                worker.shutdown()
                worker = _one_process()
                log.warning("the process of task %d of %d has died", number + 1, len(tasks))
            finally:
                idle.put(worker)
        raise died(number)

    threads = ThreadPoolExecutor(workers)
    try:
        waiting = {threads.submit(attempt, number): number for number in range(len(tasks))}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        threads.shutdown(cancel_futures=True)
        for _ in range(workers):
            idle.get().shutdown()


def _one_process() -> ProcessPoolExecutor:
    # A fork would copy the locks that other threads hold, DuckDB's and torch's among them.
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)


def end_with_parent() -> None:
    """End this process with the one that started it: of a killed parent a worker waits for its next task for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _died(what: str, tasks: int, config: ExecutionConfig, number: int) -> InputError:
    """That a task's process does not live to its end."""
    return InputError(
        f"{what}: the process of task {number + 1} of {tasks} died {config.retries + 1} times, killed or out of memory:"
        " params keys `execution.memory_gib`, `execution.workers` and `events.buckets` say how much a task may take"
    )
