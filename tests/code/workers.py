"""Functions that the tests of tasks run in other processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from dti_pipeline.errors import InputError


def process_of(number: int) -> tuple[int, int]:
    return number, os.getpid()


def die_once(task: tuple[Path, int]) -> int:
    """Ends its process, as a machine without memory would, the first time that the second task is run."""
    mark, number = task
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refuse(number: int) -> int:
    if number == 1:
        raise InputError("the second task has nothing to read")
    return number


def slowly(task: tuple[Path, int]) -> int:
    time.sleep(0.5)
    return task[1]


def refuse_or_write(task: tuple[Path, int]) -> None:
    """The first task refuses at once; the others write a file later."""
    folder, number = task
    if number == 0:
        raise InputError("the first task has nothing to read")
    (folder / f"{number} began").touch()
    time.sleep(3)
    (folder / f"{number} ended").touch()
