"""Runs with a name, for the launchpad, schedules and ``dg launch --job``.

Without ``from __future__ import annotations``: Dagster reads the annotations of an op as they stand.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from dti_pipeline.defs import ghosts
from dti_pipeline.defs.assets import BY_PARADIGM, GPU_POD
from dti_pipeline.defs.resources import Project
from dti_pipeline.pipeline import STAGES

SHARED = [stage.asset for stage in STAGES if not stage.per_paradigm and stage.name != "compare"]
PER_PARADIGM = [stage.asset for stage in STAGES if stage.per_paradigm]
COMPARISON = [stage.asset for stage in STAGES if stage.name == "compare"]
#: A run whose own process was killed is started again by Dagster's daemon where it stopped; the training it was in goes
#: on from its checkpoint. A run that failed or was cancelled is left to a person.
STARTED_AGAIN = {"dagster/max_retries": "2", "dagster/retry_strategy": "FROM_FAILURE"}
#: Tag of the runs that :func:`whole_comparison` makes, with its own run's id.
PART_OF = "whole_comparison"

prepare_log = dg.define_asset_job(
    "prepare_log", selection=SHARED, description="Raw log to tokens: what every paradigm shares. Minutes, no GPU."
)
one_paradigm = dg.define_asset_job(
    "one_paradigm",
    selection=PER_PARADIGM,
    partitions_def=BY_PARADIGM,
    tags=STARTED_AGAIN,
    description="Pack, train and judge one paradigm, on tokens that are there.",
)


def materialise(
    instance: dg.DagsterInstance,
    paradigms: Sequence[str],
    run_config: Mapping[str, Any],
    tell: Callable[[str], None],
    tags: Mapping[str, str] | None = None,
) -> str | None:
    """The whole graph for these paradigms in a run for each, one after the other in this process.

    The first makes what all share, the last the comparison. Returns the id of the run that failed; None where none did.
    """
    from dti_pipeline.definitions import defs  # here: the definitions hold this module's jobs

    graph = defs.resolve_implicit_global_asset_job_def()
    for index, paradigm in enumerate(paradigms):
        first, last = index == 0, index == len(paradigms) - 1
        assets = [*(SHARED if first else ()), *PER_PARADIGM, *(COMPARISON if last else ())]
        tell(f"Materialising {', '.join(assets)} for {paradigm}")
        done = graph.execute_in_process(
            partition_key=paradigm,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            run_config=dict(run_config),
            tags=dict(tags or {}),
            instance=instance,
            raise_on_error=False,
        )
        if not done.success:
            return done.run_id
    return None


@dg.op(
    pool="gpu",  # the runs that it makes do not queue
    description="A run for each of `paradigms` in params.yaml, one after the other; their pages hold the progress.",
)
def compare_paradigms(context: dg.OpExecutionContext, project: Project) -> None:
    ghosts.sign(context)
    run_config = {"resources": {"project": {"config": {"overrides": project.overrides}}}}
    context.log.info(f"one run for each paradigm: under Runs with the tag {PART_OF}={context.run_id}")
    failed = materialise(
        context.instance, project.open().config.paradigms, run_config, context.log.info, {PART_OF: context.run_id}
    )
    if failed is None:
        return
    if context.run.status == dg.DagsterRunStatus.CANCELING:
        raise dg.DagsterExecutionInterruptedError  # it reached the run inside; this one is cancelled too
    raise dg.Failure(f"run {failed} failed: its page says why", allow_retries=False)


@dg.job(
    tags=GPU_POD,  # on Kubernetes: its runs are inside its own pod
    description="Everything, from the raw log to the comparison of all `paradigms` in params.yaml.",
)
def whole_comparison() -> None:
    compare_paradigms()


JOBS: list[Any] = [prepare_log, one_paradigm, whole_comparison]
