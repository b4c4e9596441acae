"""From a raw file to row plans: how long does each stage take, how much memory, and does time grow with the rows?

A generated CSV log (a rating a line in time order, 100 ratings a user, 20,000 titled items with a popularity tail) goes
through `dti ingest`, `validate`, `tokenize` and `pack` (k = 50 and the sliding window), each in a process of its own:
wall time with interpreter and imports, CPU time, peak resident memory. Making the log is not counted.

    python -m benchmarks.data_stages --rows 1000000 10000000
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from benchmarks.lib.harness import dti, parser, publish, run, sets

ITEMS, PER_USER, BLOCK = 20_000, 100, 1_000_000
WORDS = 400
START, SECONDS_A_ROW = 1_577_836_800, 3
SETTINGS = ("events.source=table", "events.path=log", "events.items_path=items.csv", "tracking.enabled=false")
STAGES = ("ingest", "validate", "tokenize", "pack --paradigm dti", "pack --paradigm sliding_window")


def main() -> None:
    of_each_size("data_stages", __doc__, measure)


def of_each_size(
    name: str, description: str | None, measure: Callable[[int, str, Path], Iterable[dict[str, Any]]]
) -> None:
    """Publish what ``measure`` has of each number of rows, with a memory limit, in an empty home."""
    options = parser(description)
    options.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    options.add_argument("--memory-limit", default="2GB", help="events.memory_limit (default: %(default)s)")
    options.add_argument("--scratch", type=Path, help="folder with room for the log (default: the system's)")
    given = options.parse_args()
    results: list[dict[str, Any]] = []
    for rows in given.rows:
        with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
            results += measure(rows, given.memory_limit, Path(scratch))
    publish(name, results, given)


def measure(rows: int, memory_limit: str, home: Path) -> Iterator[dict[str, Any]]:
    write_log(home, rows)
    overrides = sets([*SETTINGS, f"events.memory_limit={memory_limit}"])
    taken = []
    for stage in STAGES:
        taken.append(run(dti(*stage.split(), *overrides), home))
        yield row(rows, stage.replace("--paradigm ", ""), *taken[-1])
    walls, cpus, peaks = zip(*taken[:4], strict=True)
    yield row(rows, "raw file to row plans", sum(walls), sum(cpus), max(peaks))


def row(rows: int, stage: str, wall: float, cpu: float, peak: float) -> dict[str, Any]:
    return {
        "rows": rows,
        "stage": stage,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "rows_per_second": round(rows / wall),
        "peak_memory_gib": round(peak, 2),
    }


def write_log(home: Path, rows: int) -> None:
    """``log/ratings.csv`` and ``items.csv``, a block at a time: deterministic."""
    draw = np.random.default_rng(7)
    words = np.array([f"word{i}" for i in range(WORDS)])
    titles = [" ".join(words[draw.integers(0, WORDS, draw.integers(2, 7))]) + f" {i}" for i in range(ITEMS)]
    pyarrow.csv.write_csv(pa.table({"item_id": np.arange(ITEMS), "item_text": titles}), home / "items.csv")
    (home / "log").mkdir()
    users = max(rows // PER_USER, 1)
    schema = pa.schema([(name, pa.int64()) for name in ("user_id", "item_id", "rating", "timestamp")])
    with pyarrow.csv.CSVWriter(home / "log" / "ratings.csv", schema) as writer:
        for first in range(0, rows, BLOCK):
            count = min(BLOCK, rows - first)
            columns = {
                "user_id": draw.integers(0, users, count),
                "item_id": np.minimum((ITEMS * draw.random(count) ** 3).astype(np.int64), ITEMS - 1),
                "rating": draw.integers(1, 6, count),
                "timestamp": START + SECONDS_A_ROW * np.arange(first, first + count),
            }
            writer.write_table(pa.table(columns, schema=schema))


if __name__ == "__main__":
    main()
