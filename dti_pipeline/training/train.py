"""The training stage: from row plans to a published model, in three steps: set up, run, publish."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed
from dti_pipeline.modeling.speed import compiler_cache
from dti_pipeline.paths import Paths
from dti_pipeline.training import checkpoint
from dti_pipeline.training.progress import Listener
from dti_pipeline.training.publish import publish
from dti_pipeline.training.report import TrainReport
from dti_pipeline.training.setup import Setup
from dti_pipeline.training.threads import enough_threads
from dti_pipeline.training.timeline import Timeline

#: Signals within it are one request: a terminal signals every process of a command, and some pass theirs on.
ONE_REQUEST_SECONDS = 10.0


def train(
    config: Config, paths: Paths, paradigm: str, listeners: Iterable[Listener] = (), timeline: Timeline | None = None
) -> TrainReport:
    """Train one paradigm's model, continuing from its newest checkpoint, and publish it; its report.

    SIGINT and SIGTERM save a checkpoint and raise CheckFailed; the next call goes on from there. On the CPU an
    interrupted and continued training gives the same weights, bit for bit, as one that was left alone.
    ``timeline`` is that of the process so far, if anybody has kept one.
    """
    timeline = timeline or Timeline.begin()
    timeline.mark("imports")
    compiler_cache.keep(paths.compiled)
    setup = Setup.make(config, paths, paradigm, listeners, timeline)
    try:
        with enough_threads(setup.accelerator.device, setup.numbers), interruptible() as interrupted:
            setup.begin()
            done = not setup.loader.steps.count or setup.trainer().run(interrupted)
    except Exception:
        if setup.accelerator.is_main_process:
            checkpoint.end(setup.checkpoints)  # its record says that it failed: the next training begins another
        raise
    if not done:
        raise CheckFailed(
            f"training of {paradigm} was interrupted at step {setup.progress.step}; run it again to go on"
        )
    return publish(setup)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT or SIGTERM has come; a later signal acts as it always does."""
    received: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(time.monotonic())
        if received[-1] - received[0] > ONE_REQUEST_SECONDS:
            signal.signal(number, previous[signal.Signals(number)])
            signal.raise_signal(number)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever owns it decides what signals do
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
