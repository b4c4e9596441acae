"""Ends runs whose process was killed, which would hold their pools for ever.

Dagster's own monitoring knows only processes that its running server started.
"""

from __future__ import annotations

import socket
from pathlib import Path

import dagster as dg
from dagster import DagsterRunStatus as Status

#: Tag with the run's process: host, process id, start (ids are used again).
PROCESS = ".dagster/dti_process"  # the page hides what begins with `.dagster/`
UNFINISHED = [Status.STARTED, Status.CANCELING]


def sign(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> None:
    """Tag a run with this process."""
    if PROCESS not in context.run.tags and (mine := process("self")):
        context.instance.add_run_tags(context.run_id, {PROCESS: mine})


def end_killed(instance: dg.DagsterInstance) -> list[str]:
    """Mark unfinished runs of this machine as failed or cancelled where their process is gone; returns their ids.

    The daemon then retries the jobs that ask for it, and a training continues from its checkpoint.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        host, _, rest = run.tags.get(PROCESS, "").partition(":")
        if host != socket.gethostname() or process(rest.partition(":")[0]) == run.tags[PROCESS]:
            continue
        if run.status == Status.CANCELING:
            instance.report_run_canceled(run, "Its process ended while it was being cancelled.")
        else:
            instance.report_run_failed(run, "Its process is gone: killed, or the machine went down.")
        ended.append(run.run_id)
    return ended


def process(number: str) -> str | None:
    """Host, id and start of a process by its id, or ``self``; None where it is gone, or the system is not Linux."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    started = stat.rpartition(")")[2].split()[19]  # proc(5): field 22, in ticks since the machine started
    return f"{socket.gethostname()}:{stat.split()[0]}:{started}"


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process was killed, so that the queue continues. Starts nothing.",
)
def killed_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """The only sensor that is on from the beginning."""
    ended = end_killed(context.instance)
    return dg.SkipReason(f"marked as failed: {', '.join(ended)}" if ended else "every run's process is there")
