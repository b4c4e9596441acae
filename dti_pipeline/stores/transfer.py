"""Many objects at a time, with progress; an object that goes on where it stopped."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from dti_pipeline.errors import InputError
from dti_pipeline.stores.s3 import Broken, Bucket, Heard, Object

T = TypeVar("T")
R = TypeVar("R")
#: Objects at a time, and how often in a row a connection may end without a byte.
THREADS, ATTEMPTS = 8, 3


class _Stopped(Exception):
    """Another thread has failed, or somebody has pressed Ctrl-C."""


def each(function: Callable[[T, Heard], R], items: Sequence[T], heard: Heard = lambda _: None) -> list[R]:
    """``function(item, heard)`` of every item, in their order, several at a time. The first exception ends the others
    as soon as they have something to tell."""
    stop = threading.Event()

    def tell(count: int) -> None:
        if stop.is_set():
            raise _Stopped
        heard(count)

    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(function, item, tell) for item in items]
        try:
            for future in futures.wait(running, return_when=FIRST_EXCEPTION).done:
                future.result()
            return [future.result() for future in running]
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def fetch(bucket: Bucket, found: Object, target: Path, parts: Path, heard: Heard) -> None:
    """Bring an object to ``target``, by one rename. What came of it before an interruption lies in ``parts`` and is not
    fetched again while the object is the same. Raises InputError where it cannot be had whole."""
    part = parts / hashlib.md5(f"{found.address}\n{found.etag}\n{found.size}".encode()).hexdigest()
    parts.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        here, failed = file.tell(), 0
        heard(here)
        while here < found.size:
            before = here
            try:
                for piece in bucket.pieces(found, here):
                    file.write(piece)
                    here += len(piece)
                    heard(len(piece))
                said = f"{found.address} broke off"
            except Broken as error:
                said = str(error)
            failed = 0 if here > before else failed + 1
            if failed == ATTEMPTS:
                raise InputError(f"{said} ({here} of {found.size} bytes are here): run the command again to go on")
    if here != found.size:
        part.unlink()
        raise InputError(f"{found.address} has more bytes than the store said: run the command again")
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)


@contextmanager
def bar(what: str, total: int) -> Iterator[Heard]:
    """A bar in a terminal, nothing elsewhere; hears bytes."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=total)
        yield lambda count: shown.advance(task, count)
