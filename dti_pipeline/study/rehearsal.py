"""A log whose validation targets stand to its training rows as another log's test targets do: for choosing a recipe.

Where a log is split by its order, items age: the test targets of MovieLens-1M's file name items that training never
showed 45 times as often as its validation targets do, which follow the training rows at once. A recipe chosen on those
learns items by heart. A rehearsal is the same log less its test rows, trained on a smaller first part of every user's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dti_pipeline import artifacts
from dti_pipeline.paths import Paths


@dataclass(frozen=True)
class Rehearsal:
    """Of which log of the study, and which part of it trains."""

    of: str = ""
    train: float = 0.6  # the first share of every user's rows


def rehearse(log: Paths, past: Paths, train: float) -> None:
    """Publish the events of ``past``, made from those of ``log``, which must be split by ``user_order``.

    The first ``train`` of every user's rows train, the log's validation targets are the validation targets, and what
    lies between is context only in so far as a prompt reaches back to it: it gets the test split, which nobody scores.
    No test row of the log is in ``past``. Cost: one read of the events, in memory.
    """
    manifest = artifacts.read(log.events, "ingest")
    table = pq.read_table(log.events / "interactions.parquet")
    user = table["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    share = table["position"].to_numpy() / np.bincount(user)[user]
    validation = pc.equal(table["split"], "validation").to_numpy()
    split = np.where(validation, "validation", np.where(share < train, "train", "test"))
    kept = pc.not_equal(table["split"], "test")
    table = table.set_column(table.schema.get_field_index("split"), "split", pa.array(split)).filter(kept)
    with artifacts.publish(past.events, "ingest", manifest.config, {"events": log.events}) as draft:
        pq.write_table(table, draft.path / "interactions.parquet", compression="zstd")
        draft.report = manifest.report
