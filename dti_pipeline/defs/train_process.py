"""The training process that the ``model`` asset starts: one stage, its progress told through Dagster Pipes.

With ``training.processes`` above 1 it becomes torchrun, which starts this again in every process; the first one speaks.
Imports no Dagster: what trains also runs where only dagster-pipes is installed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dagster_pipes import PipesContext, open_dagster_pipes

from dti_pipeline import config, pipeline
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import mlflow_page
from dti_pipeline.training.listeners import lines
from dti_pipeline.training.progress import Event, FellBack, Listener, Started

MODULE = "dti_pipeline.defs.train_process"
FAILURE = "failure"  # key of the message that carries the sentence of a failure on purpose
#: Time a cancelled training has to save its checkpoint: that of 8 billion trained weights is some 100 GB.
SAVE_SECONDS = 600
#: prctl(2): the signal that this process gets when the one that started it ends.
PR_SET_PDEATHSIG = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paradigm", required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--tag", dest="tags", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    under_torchrun = "RANK" in os.environ
    # Whoever starts this may be killed. Alone, it then saves and ends; torchrun, told so, has its processes save, and
    # what is left of them when torchrun itself was killed can only end: they wait for one another.
    _when_the_parent_ends(signal.SIGKILL if under_torchrun else signal.SIGTERM)
    if arguments.processes > 1 and not under_torchrun:
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_SECONDS))
        os.execv(sys.executable, [*torchrun(arguments.processes), *sys.argv[1:]])
    tags = dict(tag.split("=", 1) for tag in arguments.tags)
    with _pipes() as pipes:
        try:
            paths = Paths.from_env()
            settings = config.load(paths.params, arguments.overrides)
            listeners = [report_to(pipes)] if pipes else []
            pipeline.execute(pipeline.TRAIN, settings, paths, arguments.paradigm, listeners, tags)
        except (InputError, CheckFailed) as error:
            if pipes is None:
                raise
            # A message and a clean exit, not an exit code: a code would reach the run's page as a stack trace.
            pipes.report_custom_message({FAILURE: str(error)})


def torchrun(processes: int) -> list[str]:
    """The command that runs this module in several processes.

    Not `accelerate launch`: with `--cpu --num_processes 2` it runs one process and says nothing.
    """
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        MODULE,
    ]


def _when_the_parent_ends(number: signal.Signals) -> None:
    """Get that signal then; it holds through exec. Linux knows it, elsewhere a killed parent leaves its child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


@contextmanager
def _pipes() -> Iterator[PipesContext | None]:
    if os.environ.get("RANK", "0") != "0":
        yield None
        return
    with open_dagster_pipes() as pipes:
        yield pipes


def report_to(pipes: PipesContext) -> Listener:
    """A listener that tells a training's events in the run's log, with the address of its curves."""
    tell = lines(pipes.log.info)

    def listen(event: Event) -> None:
        tell(event)
        if isinstance(event, Started) and event.run_id:
            pipes.log.info(f"curves, as they grow: {mlflow_page.run_address(event.run_id)}")
        elif isinstance(event, FellBack):
            pipes.log.warning(event.line)

    return listen


if __name__ == "__main__":
    main()
