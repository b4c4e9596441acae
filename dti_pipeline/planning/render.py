"""The plan as text: conditions, a table with a line for each paradigm, a table of measured runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HEADER = ("", "targets", "tokens", "per target", "padding", "FLOP", "hours", "x formula", "x tokens", "x FLOP")
MEASURED = ("measured", "targets/s", "tokens/s", "per target", "x targets/s", "x tokens", "off by")


def render(plan: Mapping[str, Any]) -> str:
    """Fixed width, at most 110 columns."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
    log, model, gpu, memory = plan["log"], plan["model"], plan["gpu"], plan["memory"]
    yield (
        f"log      {log['interactions']:,} interactions of {log['users']:,} users,"
        f" {log['tokens_per_interaction']:.1f} tokens each ({log['source']})"
    )
    yield (
        f"prompts  n = {plan['context']} context, k = {plan['targets_per_prompt']} targets (sliding_window 1), rows of"
        f" {plan['row_length']:,} tokens, {plan['epochs']:g} epochs"
    )
    yield f"model    {model['name']}: {model['parameters']:,} weights, {model['trained']:,} trained ({model['method']})"
    yield (
        f"memory   {memory['total_gb']:.3g} GB = weights {memory['weights_gb']:.3g}"
        f" + optimizer {memory['optimizer_gb']:.3g} + activations {memory['activations_gb']:.3g}"
        f" ({memory['micro_batch_tokens']:,} tokens a micro-batch); {gpu['name']} has {gpu['memory_gb']:g}:"
        f" {'fits' if memory['fits'] else 'does not fit'}"
    )
    yield (
        f"hours    on {gpu['count']} x {gpu['name']}: bfloat16, {gpu['teraflops']:g} TFLOP/s at best,"
        f" {gpu['utilisation']:.0%} of it reached"
    )
    yield ""
    rows = [
        (
            name,
            f"{row['targets']:,}",
            _short(row["tokens"]),
            f"{row['tokens_per_target']:.1f}",
            f"{row['padding_share']:.1%}",
            f"{row['flop']:.3g}",
            f"{row['hours']:.3g}",
            *(f"{row[key]:.2f}" for key in ("speedup_formula", "speedup_tokens", "speedup_flop")),
        )
        for name, row in plan["paradigms"].items()
    ]
    yield from _table(HEADER, rows)
    yield ""
    yield "x: cheaper than sliding_window by (n+1)c+1 over (c+1)+nc/k; by this log's tokens; by FLOP, attention and"
    yield "padding included. Hours are a formula's: a model of a few million weights takes longer."
    if plan["measured"]:
        yield ""
        yield from _table(MEASURED, [_measured(name, row) for name, row in plan["measured"].items()])
        yield f"measured on {', '.join(sorted({row['hardware'] for row in plan['measured'].values()}))};"
        yield "off by: the speed-up in targets/s against the ratio of tokens a target, both of these very runs"


def _measured(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    ratio: tuple[str, ...] = ("–", "–", "–")
    if "speedup" in row:
        ratio = (f"{row['speedup']:.2f}", f"{row['speedup_formula']:.2f}", f"{row['off_formula']:+.0%}")
    return (
        name,
        f"{row['targets_per_second']:,.1f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['tokens_per_target']:.1f}",
        *ratio,
    )


def _short(count: float) -> str:
    """Below a million in full, above it with a unit: 1,234, 1.23M, 4.56G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.2f}{letter}"
    return f"{count:,}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    for line in (header, *rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join([line[0].ljust(len(first)), *rest]).rstrip()
