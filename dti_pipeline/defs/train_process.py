"""The training process that the ``model`` asset starts: one stage, its progress told through Dagster Pipes.

With ``training.processes`` above 1 it becomes torchrun, which starts this again in every process; the first one speaks.
Needs dagster-pipes, not Dagster.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from contextlib import nullcontext

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
    arguments = parser.parse_args()
    under_torchrun = "RANK" in os.environ
    # When whoever started this is killed, it saves and ends, and torchrun has its processes do so. Those whose torchrun
    # was killed can only end: they wait for one another.
    when_the_parent_ends(signal.SIGKILL if under_torchrun else signal.SIGTERM)
    if arguments.processes > 1 and not under_torchrun:
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_SECONDS))
        torchrun = f"-m torch.distributed.run --standalone --nproc-per-node={arguments.processes} -m {MODULE}"
        os.execv(sys.executable, [sys.executable, *torchrun.split(), *sys.argv[1:]])
    speaks = os.environ.get("RANK", "0") == "0"
    with open_dagster_pipes() if speaks else nullcontext() as pipes:
        try:
            paths = Paths.from_env()
            settings = config.load(paths.params, arguments.overrides)
            listeners = [report_to(pipes)] if pipes else []
            tags = {"dagster.run_id": pipes.run_id} if pipes else {}
            pipeline.execute(pipeline.TRAIN, settings, paths, arguments.paradigm, listeners, tags)
        except (InputError, CheckFailed) as error:
            if pipes is None:
                raise
            # Not an exit code, which would reach the run's page as a stack trace.
            pipes.report_custom_message({FAILURE: str(error)})


def when_the_parent_ends(number: signal.Signals) -> None:
    """Get that signal then, also after exec. Elsewhere than on Linux a killed parent leaves its child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))


def report_to(pipes: PipesContext) -> Listener:
    """A listener that tells a training's events in the run's log, with the address of its curves."""
    tell = lines(pipes.log.info)

    def listen(event: Event) -> None:
        tell(event)
        if isinstance(event, Started) and event.run_id:
            pipes.log.info(f"curves{mlflow_page.needs()}: {mlflow_page.run_address(event.run_id)}")
        elif isinstance(event, FellBack):
            pipes.log.warning(event.line)

    return listen


if __name__ == "__main__":
    main()
