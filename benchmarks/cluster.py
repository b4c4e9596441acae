"""Which part of a data stage grows with the workers, and what lies on the disk: the rates of `dti plan --rows`.

The log of benchmarks/data_stages.py goes through the stages in --buckets buckets with two workers. CPU time is that of
the stage's own process, which no worker shortens, and that of its tasks, which workers divide. Disk: what a stage has
left, and the most that lay beside it while it ran.

    python -m benchmarks.cluster --rows 1000000 10000000
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.data_stages import SETTINGS, write_log
from benchmarks.lib.harness import parser, publish, run, sets

#: A stage in a process that writes its own CPU time and its tasks' to a file.
_SPLIT = """
import json, resource, sys
from dti_pipeline.cli import main
sys.argv[0:2] = ["dti"]
try:
    main()
finally:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    with open("used.json", "w") as handle:
        json.dump([one.ru_utime + one.ru_stime for one in used] + [one.ru_maxrss / 2**20 for one in used], handle)
"""
COMMANDS = {
    "ingest": "ingest",
    "validate": "validate",
    "tokenize": "tokenize",
    "pack dti": "pack --paradigm dti",
    "pack sliding_window": "pack --paradigm sliding_window",
}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    options.add_argument("--buckets", type=int, default=8, help="(default: %(default)s)")
    options.add_argument("--scratch", type=Path, help="folder with room for the log (default: the system's)")
    given = options.parse_args()
    results: list[dict[str, Any]] = []
    for rows in given.rows:
        with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
            results += measure(rows, given.buckets, Path(scratch))
    publish("cluster", results, given)


def measure(rows: int, buckets: int, home: Path) -> Iterator[dict[str, Any]]:
    write_log(home, rows)
    overrides = sets([*SETTINGS, f"events.buckets={buckets}", "execution.workers=2"])
    for stage, command in COMMANDS.items():
        before = size(home)
        with watched(home) as most:
            wall, _, _ = run([sys.executable, "-c", _SPLIT, "-", *command.split(), *overrides], home)
        own, workers, own_peak, task_peak = json.loads((home / "used.json").read_text())
        left = size(home)
        yield {
            "rows": rows,
            "stage": stage,
            "seconds": round(wall, 2),
            "own_cpu_seconds": round(own, 2),
            "task_cpu_seconds": round(workers, 2),
            "own_gib": round(own_peak, 2),
            "task_gib": round(task_peak, 2),
            "bytes_a_row": round((left - before) / rows, 1),
            "more_while_it_runs": round((max(most[0], left) - left) / rows, 1),
        }


@contextmanager
def watched(home: Path) -> Iterator[list[int]]:
    """The most bytes that lay in a folder, looked at every half second."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            most[0] = max(most[0], size(home))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def size(folder: Path) -> int:
    """Bytes of a folder's files; those that go meanwhile are not counted."""
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
