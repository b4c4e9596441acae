"""What docs/benchmark.md shows of a result: the columns that answer its question. The file has them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def summary(name: str, rows: Rows) -> list[dict[str, Any]]:
    """Rows of the result ``name`` as the document shows them."""
    shown = _SHOWN.get(name)
    return [shown(row) for row in rows] if shown else [dict(row) for row in rows]


def _trained(row: Mapping[str, Any]) -> str:
    return f"{row['model']}, {row['trained']}"


def _train_step(row: Mapping[str, Any]) -> dict[str, Any]:
    form = row["form"] if row["paradigm"] == "sliding_window" else f"k = {row['k']} {row['fixes']}".strip()
    return {
        "model, trained: paradigm": f"{_trained(row)}: {row['paradigm']}, {form}",
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
        "model, trained": _trained(row),
        "step": row["step"],
        "attention ms": round(row["attention forward ms"] + row["attention backward ms"], 1),
        "matrix products ms": row["matrix products ms"],
        "elementwise ms": row["norms, rotation, elementwise ms"],
        "mask ms": row["mask ms"],
        "update ms": row["clipping and optimizer ms"],
        "idle ms": row["idle ms"],
    }


def _memory(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model, trained: paradigm": f"{_trained(row)}: {row['paradigm']}, {row['form']}",
        "layers computed again": "yes" if row["activation_checkpointing"] else "no",
        "usual tokens": row["usual_tokens"],
        "their peak GiB": row["usual_peak_gib"],
        "their tokens/s": row["usual_tokens_per_second"],
        "largest tokens": row["largest_tokens"],
        "largest's peak GiB": row["largest_peak_gib"],
        "largest's tokens/s": row["largest_tokens_per_second"],
    }


def _scaling(row: Mapping[str, Any]) -> dict[str, Any]:
    sharded = ", sharded" if row["sharding"] == "full" else ""
    return {
        "model, trained: paradigm": f"{_trained(row)}{sharded}: {row['paradigm']}",
        "processes": row["processes"],
        "targets per process and step": row["targets_per_process_and_step"],
        "tokens/s and process": row["tokens_per_second_and_process"],
        "targets/s": row["targets_per_second"],
        "step ms": row["step_ms"],
        "CUDA graph": "yes" if row["cuda_graph"] else "no",
        "efficiency": row["efficiency"],
    }


def _attention(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "heads": row["heads"],
        "paradigm": row["paradigm"],
        "form": row["form"],
        "forward ms": row["forward_ms"],
        "backward ms": row["backward_ms"],
        "forward TFLOP/s": row["forward_tflops"],
        "backward TFLOP/s": row["backward_tflops"],
    }


def _first_step(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without the parts that take a tenth of a second."""
    return {
        "model, trained": _trained(row),
        "caches": row["cache"],
        "seconds": row["seconds"],
        "imports": row["imports"],
        "weights": row["weights"],
        "compilation": row["compilation"],
        "first step": row["first_step"],
    }


def _evaluation_gpu(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": row["model"],
        "tokens per batch": row["tokens_per_batch"],
        "targets": row["targets"],
        "targets/s": row["targets_per_second"],
        "tokens/s": row["tokens_per_second"],
        "forward pass alone, tokens/s": row["forward_tokens_per_second"],
        "share": row["share_of_forward"],
    }


def _prompts(row: Mapping[str, Any]) -> str:
    return f"{row['paradigm']}, k = {row['k']}" if row["paradigm"] != "sliding_window" else row["paradigm"]


def _train_step_cpu(row: Mapping[str, Any]) -> dict[str, Any]:
    columns = ("tokens_per_target", "targets_per_step", "targets_per_second", "tokens_per_second", "speedup",
               "fewer_tokens")  # fmt: skip
    return {"paradigm": _prompts(row), **{column: row[column] for column in columns}}


def _train_step_float8(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "paradigm, form": f"{_prompts(row)}, {row['form']} {row['fixes']}".strip(),
        "tokens/s": row["tokens_per_second"],
        "TFLOP/s": row["tflops"],
        "targets/s": row["targets_per_second"],
        "speed-up (bound)": f"{row['speedup']} ({row['bound']})",
        "pass ms": row["pass_ms"],
        "tokens per pass": row["tokens_per_pass"],
        "peak GiB": row["peak_memory_gib"],
    }


def _epoch(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "paradigm": _prompts(row),
        "targets per step": row["targets_per_step"],
        "tokens per pass": row["tokens_per_pass"],
        "targets/s": row["targets_per_second"],
        "tokens/s": row["tokens_per_second"],
        "epoch s": row["epoch_seconds"],
        "speed-up": row["speedup"],
        "fewer tokens": row["fewer_tokens"],
    }


def _only(*columns: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda row: {column: row[column] for column in columns}


def _serving(row: Mapping[str, Any]) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column != "state_kib"}


def _service(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "service": row["service"],
        "load": row["load"],
        "candidates": row["candidates"],
        "requests/s": row["requests_per_second"],
        "p50 ms": row["p50_ms"],
        "p99 ms": row["p99_ms"],
        "requests a batch": row["requests_a_batch"],
        "MiB before, after": f"{row['memory_before_mib']}, {row['memory_mib']}",
    }


def _without(*columns: str) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    return lambda row: {column: value for column, value in row.items() if column not in columns}


_SHOWN = {
    "cluster": _without("seconds"),
    "plan_memory": _without("plan_mib"),
    "serving": _serving,
    "service": _service,
    "train_step": _train_step,
    "train_step_profile": _train_step_profile,
    "whole_training": _only(
        "paradigm",
        "targets",
        "targets_per_second",
        "seconds",
        "compilation_seconds",
        "first_step_seconds",
        "steps_seconds",
        "validation_auc",
    ),
    "loader": _only(
        "plan",
        "row_length",
        "batch_tokens",
        "tokens",
        "tokens_per_second",
        "plan_mb",
        "copied_prompts_mb",
        "plan_over_copies",
    ),
    "packing": _only(
        "plan",
        "row_length",
        "prompts",
        "prompts_per_second",
        "padding_share",
        "sample_padding_best_fit",
        "sample_padding_first_fit",
    ),
    "train_step_cpu": _train_step_cpu,
    "train_step_float8": _train_step_float8,
    "float8_quality": _only(
        "seed",
        "auc_base",
        "auc_plain",
        "auc_float8",
        "difference",
        "low",
        "high",
        "mean_change_of_probability",
    ),
    "epoch": _epoch,
    "epoch_home": _epoch,
    "memory": _memory,
    **{f"scaling_{count}": _scaling for count in (2, 4, 8)},
    "attention": _attention,
    "first_step": _first_step,
    "evaluation_gpu": _evaluation_gpu,
}
