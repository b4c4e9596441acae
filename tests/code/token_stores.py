"""Token stores written directly, without a log, a tokenizer or the stages before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.packing.store import SPLITS, write_columns
from dti_pipeline.paths import Paths
from tests import reports

#: For each user, for each interaction: (tokens of its text, split).
History = list[tuple[int, str]]


def publish_events(paths: Paths, table: pa.Table, **how: Any) -> None:
    """data/events with this log, as if it were ingested with the defaults; ``how`` goes to the writer of Parquet."""
    paths.checks.mkdir(parents=True)
    with artifacts.publish(paths.events, "ingest", Config().sections("events", "split")) as draft:
        pq.write_table(table, draft.path / "interactions.parquet", **how)
        draft.report = reports.INGEST


def write_store(paths: Paths, users: list[History], prefix: tuple[int, ...] = ()) -> None:
    """data/tokens of these users: every interaction has a text of its own, labels alternate."""
    rows = [row for user in users for row in user]
    position = np.array([i for user in users for i in range(len(user))], np.int32)
    offsets = np.cumsum([0, *(length for length, _ in rows)]).astype(np.int64)
    with artifacts.publish(paths.tokens, "tokenize") as draft:
        write_columns(draft.path / "texts.arrow", {"token": 4 + np.arange(offsets[-1], dtype=np.int32) % 90})
        write_columns(draft.path / "offsets.arrow", {"offset": offsets})
        write_columns(
            draft.path / "interactions.arrow",
            {
                "text": np.arange(len(rows), dtype=np.int32),
                "label": (np.arange(len(rows)) % 2).astype(np.int8),
                "split": np.array([SPLITS.index(split) for _, split in rows], np.int8),
                **dict.fromkeys(("position", "request", "known"), position),
            },
        )
        draft.report = replace(reports.TOKENIZE, prefix_tokens=prefix)


def random_users(users: int, seed: int, shortest: int = 3, longest: int = 30, text: int = 8) -> list[History]:
    """Histories in time order: the first four fifths train, then validation, then test; some people stopped early."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(users):
        count = int(draw.integers(shortest, longest + 1))
        bounds = (0.8 * count, 0.9 * count) if draw.random() < 0.7 else (count, count)
        splits = [SPLITS[(i >= bounds[0]) + (i >= bounds[1])] for i in range(count)]
        made.append([(int(draw.integers(1, text + 1)), split) for split in splits])
    return made
