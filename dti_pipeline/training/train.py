"""The training stage: from row plans to a published model, in three steps: set up, run, publish."""

from __future__ import annotations

from collections.abc import Iterable

from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed
from dti_pipeline.paths import Paths
from dti_pipeline.training import checkpoint
from dti_pipeline.training.interruption import interruptible
from dti_pipeline.training.progress import Listener
from dti_pipeline.training.publish import publish
from dti_pipeline.training.report import TrainReport
from dti_pipeline.training.setup import Setup


def train(config: Config, paths: Paths, paradigm: str, listeners: Iterable[Listener] = ()) -> TrainReport:
    """Train one paradigm's model, continuing from its newest checkpoint, and publish it; its report.

    SIGINT and SIGTERM save a checkpoint and raise CheckFailed; the next call goes on from there. On the CPU an
    interrupted and continued training gives the same weights, bit for bit, as one that was left alone.
    """
    setup = Setup.make(config, paths, paradigm, listeners)
    try:
        with interruptible() as interrupted:
            done = setup.trainer().run(interrupted)
    except Exception:
        if setup.accelerator.is_main_process:
            checkpoint.end(setup.checkpoints)  # its record says that it failed: the next training begins another
        raise
    if not done:
        raise CheckFailed(
            f"training of {paradigm} was interrupted at step {setup.progress.step}; run it again to go on"
        )
    return publish(setup)
