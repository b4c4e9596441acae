"""One function over many tasks, in processes here or on a Ray cluster; a process that dies is survived."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
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
#: A fork would copy the locks that other threads hold, DuckDB's and torch's among them, and no GPU is handed on by one.
START = "spawn"


def run(function: Callable[[T], R], tasks: Sequence[T], config: ExecutionConfig, what: str) -> list[R]:
    """``function(task)`` of each task, in their order, whatever order they end in.

    ``function`` is one of a module, and tasks and results can be pickled: they are small, and name files that every
    machine reaches by the same path. A task may be run again after a part of it was done, so it writes its files aside
    and renames them. ``what`` says in a word or two what is made; the log tells how many are done where tasks run
    outside this process. An exception of a task ends the run. Raises
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
            if several(config) and len(tasks) > 1:
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
    return stream(function, tasks, min(config.workers, len(tasks)), config.retries, died)


def stream(
    function: Callable[[T], R],
    tasks: Iterable[T],
    workers: int,
    retries: int,
    died: Callable[[int], Exception],
    begin: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, R]]:
    """Number and result of each of any number of tasks, as they end: here, or in ``workers`` processes.

    Tasks are taken as there is room for them, two a process. ``function`` and tasks as in :func:`run`. ``begin`` is
    called in each process, first of all, with the number of the worker whose process it is. Raises what ``died`` gives
    of a task whose process has died ``retries`` times and once more.
    """
    if workers == 1:
        yield from ((number, function(task)) for number, task in enumerate(tasks))
        return
    # Each worker is a pool of one process, so that a death is that of one known task and leaves the others alone.
    idle: SimpleQueue[tuple[int, ProcessPoolExecutor]] = SimpleQueue()
    for worker in range(workers):
        idle.put((worker, _one_process(begin, worker)))

    def attempt(number: int, task: T) -> R:
        for _ in range(retries + 1):
            worker, process = idle.get()
            try:
                return process.submit(function, task).result()
            except BrokenProcessPool:
                process.shutdown()
                process = _one_process(begin, worker)
                log.warning("the process of task %d has died", number + 1)
            finally:
                idle.put((worker, process))
        raise died(number)

    threads, source = ThreadPoolExecutor(workers), enumerate(tasks)
    waiting: dict[Future[R], int] = {}
    try:
        while True:
            for number, task in islice(source, 2 * workers - len(waiting)):
                waiting[threads.submit(attempt, number, task)] = number
            if not waiting:
                return
            for future in futures.wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        threads.shutdown(cancel_futures=True)
        for _ in range(workers):
            idle.get()[1].shutdown()


def _one_process(begin: Callable[[int], None] | None, worker: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context(START), _begin, (begin, worker))


def _begin(begin: Callable[[int], None] | None, worker: int) -> None:
    end_with_parent()
    if begin is not None:
        begin(worker)


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
