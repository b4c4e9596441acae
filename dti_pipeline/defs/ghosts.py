"""Runs whose process is gone without a word: marked as failed, since they would hold their pools for good.

Dagster's own monitoring knows the processes that its running server started; a machine that went down, a server that
was stopped, a killed ``dg launch`` or ``make demo`` leave runs that nobody else would ever end.
"""

from __future__ import annotations

import socket
from pathlib import Path

import dagster as dg
from dagster import DagsterRunStatus as Status

#: Tag with the run's process: host, process id, and when it started, since ids come round again.
PROCESS = ".dagster/dti_process"  # the page hides what begins with `.dagster/`
UNFINISHED = [Status.STARTED, Status.CANCELING]


def sign(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> None:
    """Write this process onto its run."""
    if PROCESS not in context.run.tags and (mine := _process("self")):
        context.instance.add_run_tags(context.run_id, {PROCESS: mine})


def end(instance: dg.DagsterInstance) -> list[str]:
    """Mark the runs that were going on in processes of this machine that are no more; their ids.

    The daemon starts those again that ask for it, and a training goes on from its checkpoint.
    """
    ended = []
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        host, _, rest = run.tags.get(PROCESS, "").partition(":")
        if host != socket.gethostname() or _process(rest.partition(":")[0]) == run.tags[PROCESS]:
            continue
        if run.status == Status.CANCELING:
            instance.report_run_canceled(run, "Its process ended while it was being cancelled.")
        else:
            instance.report_run_failed(run, "Its process is gone: killed, or the machine went down.")
        ended.append(run.run_id)
    return ended


def _process(number: str) -> str | None:
    """Host, id and start of a process; None where it is not there, or where this system does not say (not Linux)."""
    try:
        stat = Path(f"/proc/{number}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    started = stat.rpartition(")")[2].split()[19]  # proc(5): field 22, in ticks since the machine started
    return f"{socket.gethostname()}:{stat.split()[0]}:{started}"


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process was killed, so that the queue goes on. Starts nothing.",
)
def killed_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Look once a minute; the only sensor that is on from the beginning."""
    ended = end(context.instance)
    return dg.SkipReason(f"marked as failed: {', '.join(ended)}" if ended else "every run's process is there")
