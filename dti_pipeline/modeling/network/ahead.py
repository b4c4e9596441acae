"""Work that a thread does ahead of whoever needs it, such as assembling the batches of a GPU that is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")

AHEAD = 6  # things made before they are needed


def prefetched(items: Iterable[Item], make: Callable[[Item], Made]) -> Iterator[Made]:
    """``make`` of each item, in order, with :data:`AHEAD` more in the making, by one thread: several would wait for
    the interpreter's lock. ``items`` are drawn in the caller's; an error of ``make`` is raised at its item."""
    pool, waiting = ThreadPoolExecutor(1, "ahead"), deque[Future[Made]]()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
