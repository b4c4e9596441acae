"""The training process that the ``model`` asset starts: one stage, its progress told through Dagster Pipes.

Under torchrun every process runs this; the first one speaks.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dagster_pipes import PipesContext, open_dagster_pipes

from dti_pipeline import config, pipeline
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.paths import Paths
from dti_pipeline.training.progress import Evaluated, Event, Finished, Listener, Started, Stepped

FAILURE = "failure"  # key of the message that carries the sentence of a failure on purpose
LOG_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paradigm", required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--tag", dest="tags", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    tags = dict(tag.split("=", 1) for tag in arguments.tags)
    with _pipes() as pipes:
        try:
            paths = Paths.from_env()
            settings = config.load(paths.params, arguments.overrides)
            listeners = [report_to(pipes)] if pipes else []
            pipeline.execute(pipeline.BY_NAME["train"], settings, paths, arguments.paradigm, listeners, tags)
        except (InputError, CheckFailed) as error:
            if pipes is None:
                raise
            # A message and a clean exit, not an exit code: a code would reach the run's page as a stack trace.
            pipes.report_custom_message({FAILURE: str(error)})


@contextmanager
def _pipes() -> Iterator[PipesContext | None]:
    if os.environ.get("RANK", "0") != "0":
        yield None
        return
    with open_dagster_pipes() as pipes:
        yield pipes


def report_to(pipes: PipesContext) -> Listener:
    """A listener that logs a training's beginning, its progress about every five seconds, its scores and its end."""
    spoken_at = -LOG_SECONDS
    total = 0

    def listen(event: Event) -> None:
        nonlocal spoken_at, total
        now = time.monotonic()
        if isinstance(event, Started):
            total = event.targets_total
            again = f", going on after {event.targets_seen:,}" if event.targets_seen else ""
            pipes.log.info(
                f"{event.paradigm}: {total:,} targets to see, {event.parameters:,} weights to train"
                f" on {event.world_size} x {event.device}{again}"
            )
        elif isinstance(event, Stepped) and now - spoken_at >= LOG_SECONDS:
            spoken_at = now
            pipes.log.info(
                f"{event.targets_seen:,} of {total:,} targets ({event.targets_seen / max(total, 1):.0%}),"
                f" loss {event.loss:.4f}, {event.targets_per_second:,.0f} targets/s, {_clock(event.seconds_left)} left"
            )
        elif isinstance(event, Evaluated):
            scores = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
            pipes.log.info(f"validation after {event.targets_seen:,} targets: {scores}")
        elif isinstance(event, Finished):
            pipes.log.info(f"{event.targets_seen:,} targets in {_clock(event.train_seconds)} of training")

    return listen


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


if __name__ == "__main__":
    main()
