"""A log that grows by a file a day, and what is made of it: as loads, or as one log."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dti_pipeline.config import Config, from_plain
from dti_pipeline.events import published
from dti_pipeline.paths import Paths

DAY, START = 86400, 1_577_836_800  # 2020-01-01
DAYS = 7
#: The last days are loads.
FIRST_LOAD = "2020-01-05.csv"
LOADS = 3
HEADER = "user_id,item_id,rating,timestamp,request,title"


def name(day: int) -> str:
    return f"2020-01-{day + 1:02}.csv"


def lines(day: int, late: bool = False) -> list[str]:
    """A day's rows: requests of one to three rows, some of them at one moment; ``late``: rows of the day before too.

    Users come and go, so that each day has users that are new, that are there again, and that are not.
    """
    draw = np.random.default_rng(day)
    made = []
    for user in draw.permutation(24)[:15]:
        if user > 12 + 2 * day:
            continue  # of a later day
        for request in range(draw.integers(1, 6)):
            back = DAY if late and draw.random() < 0.2 else 0
            time = START + day * DAY + int(draw.integers(DAY // 600)) * 600 - back
            rows = [f"u{user},{item},{draw.integers(1, 6)},{time},q{day}.{user}.{request},Film {item}"
                    for item in draw.choice(40, draw.integers(1, 4), replace=False)]  # fmt: skip
            made += rows
    return made


def config(loads_from: str | None = FIRST_LOAD, **sections: dict[str, Any]) -> Config:
    raw: dict[str, dict[str, Any]] = {
        "events": {"source": "table", "path": "log", "loads_from": loads_from, "columns": {"item_text": "title"}},
        "split": {"min_history": 2, "validation_share": 0.2, "test_share": 0.2},
        "validation": {"min_rows": 1, "min_users": 1, "min_targets": 1},
        "packing": {"context": 4, "targets": 6, "row_length": 256},
        "tracking": {"enabled": False},
    }
    for section, values in sections.items():
        raw[section] = raw.get(section, {}) | values
    return from_plain(Config, raw)


def write(paths: Paths, days: range = range(DAYS), late: bool = False) -> None:
    """Add these days to a home's log."""
    (paths.home / "log").mkdir(parents=True, exist_ok=True)
    for day in days:
        (paths.home / "log" / name(day)).write_text("\n".join([HEADER, *lines(day, late), ""]))


def rows(paths: Paths) -> list[list[dict[str, Any]]]:
    """The interactions of each load, in order."""
    return [pq.read_table(path).to_pylist() for path in published.interactions(paths.events)]


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and content of each file below a folder."""
    return {path.relative_to(folder).as_posix(): (path.stat().st_ino, path.read_bytes())
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


def afresh(paths: Paths, other: Path) -> Paths:
    """A home with the same log and nothing made of it."""
    shutil.copytree(paths.home / "log", other / "log")
    return Paths(other)
