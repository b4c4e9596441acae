"""Listeners that show a training's events to people: a progress bar in a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dti_pipeline.training.progress import (
    Checkpointing,
    Evaluated,
    Event,
    Finished,
    FirstStep,
    Listener,
    Started,
    Stepped,
)

#: Between two lines of progress.
SECONDS = 5.0


def progress_bar(console: Console) -> Listener:
    """A listener that draws targets seen, targets/s, loss, validation AUC and the time left."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} targets"),
        TextColumn("{task.fields[rate]} loss {task.fields[loss]} val AUC {task.fields[auc]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    task: TaskID | None = None

    def listen(event: Event) -> None:
        nonlocal task
        if isinstance(event, Started):
            for line in event.execution:
                console.print(line, style="dim", markup=False, highlight=False)
            bar.start()
            total, seen = event.targets_total, event.targets_seen
            task = bar.add_task(f"train {event.paradigm}", total=total, completed=seen, rate="", loss="-", auc="-")
        elif task is None:
            return
        elif isinstance(event, FirstStep):
            console.print(event.line, style="dim", markup=False, highlight=False)
        elif isinstance(event, Stepped):
            rate = f"{event.targets_per_second:,.0f}/s"
            bar.update(task, completed=event.targets_seen, rate=rate, loss=f"{event.loss:.4f}")
        elif isinstance(event, Evaluated) and "auc" in event.metrics:
            bar.update(task, auc=f"{event.metrics['auc']:.4f}")
        elif isinstance(event, Finished):
            bar.stop()

    return listen


def lines(say: Callable[[str], None]) -> Listener:
    """A listener that tells a training's start, its progress about every five seconds, its scores and its end. Falls
    are left to the log, which has them as warnings."""
    spoken_at = -SECONDS
    total = 0

    def listen(event: Event) -> None:
        nonlocal spoken_at, total
        now = time.monotonic()
        if isinstance(event, Started):
            total = event.targets_total
            again = f", going on after {event.targets_seen:,}" if event.targets_seen else ""
            say(
                f"{event.paradigm}: {total:,} targets to see, {event.parameters:,} weights to train"
                f" on {event.world_size} x {event.device}{again}"
            )
            for line in event.execution:
                say(line)
        elif isinstance(event, FirstStep):
            say(event.line)
        elif isinstance(event, Stepped) and now - spoken_at >= SECONDS:
            spoken_at = now
            say(
                f"{event.targets_seen:,} of {total:,} targets ({event.targets_seen / max(total, 1):.0%}),"
                f" loss {event.loss:.4f}, {event.targets_per_second:,.0f} targets/s, {_clock(event.seconds_left)} left"
            )
        elif isinstance(event, Evaluated):
            scores = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
            say(f"validation after {event.targets_seen:,} targets: {scores}")
        elif isinstance(event, Checkpointing):
            say(f"saving a checkpoint after {event.targets_seen:,} targets")
        elif isinstance(event, Finished):
            say(f"{event.targets_seen:,} targets in {_clock(event.train_seconds)} of training")

    return listen


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
