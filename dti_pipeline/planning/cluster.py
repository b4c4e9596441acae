"""What the data stages of a log take on a cluster: hours, disk, memory of a task and of a training process.

One worker takes ``start + whole rows`` seconds. Several take ``start + own rows + tasks rows / workers``: a stage's own
process does what is of the whole log, and no worker shortens that; the rest is tasks, of which there are as many as
buckets, spans or blocks. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dti_pipeline.errors import InputError

GIB = 2**30
#: Rows of a bucket, of a span of the log that is checked or tokenised, and of a block that is packed.
BUCKET, SPAN, BLOCK = 1 << 20, 1 << 20, 1 << 21
MOST_BUCKETS = 4096
#: Rows of the log from which a plan's spans are numbers of 64 bits: a prompt has 28 bytes instead of 16.
WIDE, WIDER = 1 << 31, 28 / 16
#: Bytes a second of a file that is checked: MD5 on one core (docs/reliability.md), up to four files at a time.
CHECKED = 0.65e9
#: Arrays of a training process for the plan, however long it is: benchmarks/results/plan_memory.json.
PLAN_GIB = 0.054


@dataclass(frozen=True)
class Stage:
    """Rates of one stage, of a row of the log. Time is that of one core."""

    name: str
    start: float  # seconds
    whole: float  # microseconds as one piece
    own: float  # microseconds of the stage's own process, where there are tasks
    tasks: float  # microseconds of its tasks
    rows: int  # of a task
    left: float  # bytes that stay on the disk
    beside: float  # bytes more while it runs
    task_gib: float  # memory of a task of so many rows


#: ``start`` and ``whole``: benchmarks/results/data_stages.json, from 1 M to 100 M rows, on an AMD EPYC with two cores.
#: ``own`` and ``tasks`` together are 1.3 times ``whole``, shared as in benchmarks/results/cluster.json, which has the
#: bytes and the memory too. The log is one of ratings: few columns, short titles, a request a row.
STAGES = (
    Stage("ingest", 0.0, 7.3, own=3.8, tasks=5.7, rows=BUCKET, left=20, beside=111, task_gib=1.1),
    Stage("validate", 4.6, 1.3, own=1.03, tasks=0.66, rows=SPAN, left=0, beside=0, task_gib=0.89),
    Stage("tokenize", 2.6, 0.53, own=0.03, tasks=0.66, rows=SPAN, left=18, beside=35, task_gib=0.23),
    Stage("pack dti", 0.8, 0.24, own=0.09, tasks=0.23, rows=BLOCK, left=3.7, beside=3.7, task_gib=0.32),
    Stage("pack sliding_window", 0.7, 0.89, own=0.14, tasks=1.01, rows=BLOCK, left=15.5, beside=14, task_gib=0.44),
)


def data_plan(rows: int, machines: int, cores: int, stages: Sequence[Stage] = STAGES) -> dict[str, Any]:
    """Hours and GiB of each stage for ``rows`` ratings. Raises InputError for numbers below 1."""
    for name, value in (("rows", rows), ("machines", machines), ("cores", cores)):
        if value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")
    workers = machines * cores
    buckets = min(MOST_BUCKETS, max(-(-rows // BUCKET), 2 * workers)) if workers > 1 else 1
    found = {stage.name: _stage(stage, rows, workers, buckets) for stage in stages}
    largest = max((row["disk_gib"] for name, row in found.items() if name != "ingest"), default=0.0)
    disk, most = 0.0, 0.0
    for row in found.values():
        disk += row["disk_gib"]
        most = max(most, disk + row["beside_gib"])
    return {
        "rows": rows,
        "machines": machines,
        "cores": cores,
        "buckets": buckets,
        "hours": sum(row["hours"] for row in found.values()),
        "core_hours": sum(row["core_hours"] for row in found.values()),
        "disk_gib": disk,
        "most_disk_gib": most,
        "stages": found,
        "rank_gib": PLAN_GIB,
        "check_hours": largest * GIB / CHECKED / 3600,
    }


def alone(stage: Stage, rows: int) -> float:
    """Seconds of a core for a stage as one piece."""
    return stage.start + rows * stage.whole / 1e6


def _stage(stage: Stage, rows: int, workers: int, buckets: int) -> dict[str, Any]:
    size = -(-rows // buckets) if stage.name == "ingest" else stage.rows
    count = -(-rows // size)
    own, shared = (stage.own, stage.tasks) if workers > 1 else (stage.whole, 0.0)
    busiest = min(rows, -(-count // workers) * size)  # rows of the worker that has the most
    wider = WIDER if rows >= WIDE and stage.name.startswith("pack") else 1.0
    return {
        "hours": (stage.start + (rows * own + busiest * shared) / 1e6) / 3600,
        "one_process_hours": (stage.start + rows * own / 1e6) / 3600,
        "core_hours": (stage.start + rows * (own + shared) / 1e6) / 3600,
        "tasks": count,
        "disk_gib": _gib(rows, stage.left * wider),
        "beside_gib": _gib(rows, stage.beside * wider),
        "task_gib": stage.task_gib * max(1.0, size / stage.rows) if workers > 1 else None,
    }


def _gib(rows: int, each: float) -> float:
    return rows * each / GIB


def span(hours: float) -> str:
    """A time as people say it: "45 seconds", "12 minutes", "3.4 hours", "12 days", "3.1 years"."""
    if hours < 1 / 3600:
        return "less than a second"
    for unit, size, until in (
        ("seconds", 1 / 3600, 2 / 60),
        ("minutes", 1 / 60, 2.0),
        ("hours", 1.0, 48.0),
        ("days", 24.0, 24 * 730.0),
    ):
        if hours < until:
            return f"{_digits(hours / size)} {unit}"
    return f"{_digits(hours / 24 / 365.25)} years"


def gib(value: float) -> str:
    """Memory or disk as people say it."""
    if 0 < value < 0.01:
        return "less than 0.01 GiB"
    return f"{_digits(value)} GiB" if value < 10_000 else f"{_digits(value / 1024)} TiB"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.2g}"
