"""What docs/benchmark.md shows of a result: the columns that answer its question. The file has them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def summary(name: str, rows: Rows) -> list[dict[str, Any]]:
    """Rows of the result ``name`` as the document shows them."""
    shown = _SHOWN.get(name)
    return [shown(row) for row in rows] if shown else [dict(row) for row in rows]


def _train_step(row: Mapping[str, Any]) -> dict[str, Any]:
    form = row["form"] if row["paradigm"] == "sliding_window" else f"k = {row['k']} {row['fixes']}".strip()
    return {
        "model, trained: paradigm": f"{row['model']}, {row['trained']}: {row['paradigm']}, {form}",
        "tokens/s": row["tokens_per_second"],
        "TFLOP/s": row["tflops"],
        "share of product": row["product_share"],
        "targets/s": row["targets_per_second"],
        "speed-up (bound)": f"{row['speedup']} ({row['bound']})",
        "peak GiB": row["peak_memory_gib"],
        "first step s": f"{row['first_step_seconds']} {row['compilation']}",
    }


def _train_step_profile(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model, trained": f"{row['model']}, {row['trained']}",
        "step": row["step"],
        "attention ms": round(row["attention forward ms"] + row["attention backward ms"], 1),
        "matrix products ms": row["matrix products ms"],
        "elementwise ms": row["norms, rotation, elementwise ms"],
        "mask ms": row["mask ms"],
        "update ms": row["clipping and optimizer ms"],
        "idle ms": row["idle ms"],
    }


def _whole_training(row: Mapping[str, Any]) -> dict[str, Any]:
    columns = ("paradigm", "targets", "targets_per_second", "seconds", "compilation_seconds", "first_step_seconds",
               "steps_seconds", "validation_auc")  # fmt: skip
    return {column: row[column] for column in columns}


_SHOWN = {
    "train_step": _train_step,
    "train_step_profile": _train_step_profile,
    "whole_training": _whole_training,
}
