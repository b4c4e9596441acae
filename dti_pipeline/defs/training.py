"""Training as a process of its own: a crash, or a GPU out of memory, ends it and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from dti_pipeline import artifacts
from dti_pipeline.defs.resources import Work
from dti_pipeline.defs.train_process import FAILURE, MODULE, SAVE_SECONDS
from dti_pipeline.errors import CheckFailed
from dti_pipeline.training.report import TrainReport

RETRIES, RETRY_SECONDS = 2, 10
#: Exceptions of a run that is cancelled, and of Ctrl-C.
CANCELLED = (dg.DagsterExecutionInterruptedError, KeyboardInterrupt)


def run(context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient, work: Work, paradigm: str) -> TrainReport:
    """Train through Dagster Pipes and return the report of the model's manifest.

    Progress comes back as log lines while it runs. Raises CheckFailed with the process's own sentence where it failed
    on purpose; a crash is tried again, from the last checkpoint. A cancelled one saves a checkpoint and ends.
    """
    arguments = ["--paradigm", paradigm, "--processes", str(work.config.training.processes)]
    arguments += ["--tag", f"dagster.run_id={context.run_id}"]
    for override in work.overrides:
        arguments += ["--set", override]
    try:
        pipes.run(
            context=context,
            command=[sys.executable, "-m", MODULE, *arguments],
            env={"DTI_HOME": str(work.paths.home)},
        )
    except Crashed as error:
        # Not a RetryPolicy on the asset: Dagster applies one to a cancelled step too.
        raise dg.RetryRequested(RETRIES, RETRY_SECONDS) from dg.Failure(str(error))
    return artifacts.read(work.paths.model(paradigm), "train", TrainReport).report


class Crashed(Exception):
    """The training process ended without a word."""


class TrainingProcess(dg.PipesSubprocessClient):
    """Dagster's client for a process on this machine, with a cancel that waits and leaves nothing behind.

    Dagster's own waits for 20 s and then leaves the process to itself, on its GPU.
    """

    def run(  # type: ignore[override]  # Dagster's own has the same arguments
        self,
        *,
        context: dg.OpExecutionContext | dg.AssetExecutionContext,
        command: str | Sequence[str],
        extras: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> dg.PipesClientCompletedInvocation:
        """Run the command to its end. Raises CheckFailed for a failure it reported, Crashed for another one."""
        with dg.open_pipes_session(
            context=context, context_injector=self.context_injector, message_reader=self.message_reader, extras=extras
        ) as session:
            # A session of its own: Ctrl-C in a terminal reaches it once, through us.
            process = subprocess.Popen(
                command,
                cwd=cwd or self.cwd,
                env={**os.environ, **self.env, **(env or {}), **session.get_bootstrap_env_vars()},
                start_new_session=True,
            )
            try:
                code = process.wait()
            except CANCELLED:
                context.log.info("cancelled: the training saves a checkpoint and ends")
                process.send_signal(signal.SIGINT)
                _wait(process, SAVE_SECONDS)
                raise
            finally:
                if process.poll() is None:
                    process.kill()  # the processes of torchrun end with it
                    process.wait()
        done = dg.PipesClientCompletedInvocation(session)
        for message in done.get_custom_messages():
            if FAILURE in message:
                raise CheckFailed(message[FAILURE])
        if code:
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            raise Crashed(f"the training process {how}: its last words are under stdout and stderr of this step")
        return done


def _wait(process: subprocess.Popen[Any], seconds: float) -> None:
    """Wait that long, whatever else is asked of us meanwhile: one cancel is often two signals."""
    until = time.monotonic() + seconds
    while process.poll() is None and (left := until - time.monotonic()) > 0:
        try:
            process.wait(left)
        except (*CANCELLED, subprocess.TimeoutExpired):
            continue
