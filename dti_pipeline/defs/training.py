"""Training as a process of its own: a crash, or a GPU out of memory, ends it and nothing else."""

from __future__ import annotations

import os
import sys
from typing import Any

import dagster as dg

from dti_pipeline import artifacts
from dti_pipeline.defs.resources import Work
from dti_pipeline.defs.train_process import FAILURE
from dti_pipeline.errors import CheckFailed

MODULE = "dti_pipeline.defs.train_process"


def run(
    context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient, work: Work, paradigm: str
) -> dict[str, Any]:
    """Train through Dagster Pipes and return the report of the model's manifest.

    Progress comes back as log lines while it runs. Raises CheckFailed with the process's own sentence where it failed
    on purpose, and Dagster's error with the exit code where it crashed.
    """
    arguments = ["--paradigm", paradigm, "--tag", f"dagster.run_id={context.run_id}"]
    for override in work.overrides:
        arguments += ["--set", override]
    done = pipes.run(
        context=context,
        command=[*launcher(work.config.training.processes), "-m", MODULE, *arguments],
        # Threads that spin while they wait slow each other down many times over where runs share the cores.
        env={"DTI_HOME": str(work.paths.home), "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")},
    )
    for message in done.get_custom_messages():
        if FAILURE in message:
            raise CheckFailed(message[FAILURE])
    return artifacts.read(work.paths.model(paradigm), "train").report


def launcher(processes: int) -> list[str]:
    """The interpreter, through torchrun where a training has more than one process.

    Not `accelerate launch`: with `--cpu --num_processes 2` it runs one process and says nothing.
    """
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
