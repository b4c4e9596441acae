"""The best possible AUC of a synthetic log: how well the probabilities that its labels were drawn from would score."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from dti_pipeline.evaluation.interactions import Array, Interactions
from dti_pipeline.paths import Paths


def best_possible(paths: Paths, log: Interactions, rows: Array) -> Array | None:
    """(N,) true click probabilities of the targets at ``rows``; None where truth.csv is missing or lacks any."""
    path = paths.synthetic / "truth.csv"
    if not path.is_file():
        return None
    types = {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64(), "probability": pa.float64()}
    table = pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(column_types=types))
    known = dict(zip(_keys(table), table["probability"].to_pylist(), strict=True))
    probability = [known.get(key) for key in _keys(log.table.take(rows))]
    return None if any(p is None for p in probability) else np.array(probability, dtype=np.float64)


def _keys(table: pa.Table) -> list[tuple[str, str, int]]:
    return list(zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "timestamp")), strict=True))
