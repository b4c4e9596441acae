"""A day added to a log: what does it cost beside making the whole again, stage by stage?

The log of `benchmarks.data_stages`, in one file, goes through `dti ingest`, `validate`, `tokenize` and `pack` (k = 50
and the sliding window). Then a second file comes, the next day of its clock (28,800 rows), as a load
(`events.loads_from`), and the stages run again. Its users are drawn among all, so that in a long log nearly every row
is another user's. Each stage is a process of its own: wall time with interpreter and imports, CPU time, peak memory.

    python -m benchmarks.growing --rows 1000000 10000000
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from benchmarks.data_stages import (
    ITEMS,
    PER_USER,
    SECONDS_A_ROW,
    SETTINGS,
    STAGES,
    START,
    of_each_size,
    write_log,
)
from benchmarks.lib.harness import dti, run, sets
from dti_pipeline import artifacts
from dti_pipeline.events import published
from dti_pipeline.events.report import IngestReport
from dti_pipeline.paths import Paths

DAY_ROWS = 86400 // SECONDS_A_ROW
FIRST, SECOND = "a.csv", "b.csv"


def main() -> None:
    of_each_size("growing", __doc__, measure)


def measure(rows: int, memory_limit: str, home: Path) -> list[dict[str, Any]]:
    """A row for each stage, and one for all of them."""
    write_log(home, rows)
    (home / "log" / "ratings.csv").rename(home / "log" / FIRST)
    overrides = sets([*SETTINGS, f"events.memory_limit={memory_limit}", f"events.loads_from={SECOND}"])
    whole = [run(dti(*stage.split(), *overrides), home) for stage in STAGES]
    before = made(home)
    write_day(home, rows)
    added = [run(dti(*stage.split(), *overrides), home) for stage in STAGES]
    after = made(home)
    kept = sum(after.get(name) == digest for name, digest in before.items())
    report = artifacts.read(home / "data/events", "ingest", IngestReport, whole=False).report
    assert report.loads is not None
    assert report.loads[1].kept == DAY_ROWS
    load = published.interactions(Paths(home).events)[1]
    found = []
    names = ["raw file to row plans", *(stage.replace("--paradigm ", "") for stage in STAGES)]
    for name, one, other in zip(names, [total(whole), *whole], [total(added), *added], strict=True):
        found.append({
            "rows": rows,
            "stage": name,
            "whole_seconds": round(one[0], 1),
            "day_seconds": round(other[0], 1),
            "day_share": round(other[0] / one[0], 4),
            "day_cpu_share": round(other[1] / one[1], 4),
            "day_peak_memory_gib": round(other[2], 2),
        })  # fmt: skip
    context = sum(path.stat().st_size for path in [load]) / (home / "data/events/interactions.parquet").stat().st_size
    print(
        f"{kept} of {len(before)} files of events kept their bytes; the load is {context:.1%} of the first file's size"
    )
    return found


def total(taken: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Of the stages to one paradigm's plans: seconds and CPU seconds added up, and the largest peak."""
    walls, cpus, peaks = zip(*taken[:4], strict=True)
    return sum(walls), sum(cpus), max(peaks)


def made(home: Path) -> dict[str, str]:
    """Digest of each file of interactions and of quarantine."""
    files = artifacts.read(home / "data/events", "ingest", whole=False).files
    return {name: md5 for name, md5 in files.items() if name.endswith(("interactions.parquet", "/quarantine.parquet"))}


def write_day(home: Path, rows: int) -> None:
    """The day behind the log's last row."""
    draw = np.random.default_rng(8)
    columns = {
        "user_id": draw.integers(0, max(rows // PER_USER, 1), DAY_ROWS),
        "item_id": np.minimum((ITEMS * draw.random(DAY_ROWS) ** 3).astype(np.int64), ITEMS - 1),
        "rating": draw.integers(1, 6, DAY_ROWS),
        "timestamp": START + SECONDS_A_ROW * np.arange(rows, rows + DAY_ROWS),
    }
    pyarrow.csv.write_csv(pa.table(columns), home / "log" / SECOND)


if __name__ == "__main__":
    main()
