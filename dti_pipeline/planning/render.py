"""The plan as text: conditions, a table with a line for each paradigm, a table of measured runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dti_pipeline.paradigms import BASELINE, DTI
from dti_pipeline.planning import cluster

#: Columns of a table: header, key of a row and format of its value.
Columns = Sequence[tuple[str, str, str]]
PLANNED: Columns = (
    ("targets", "targets", ","), ("tokens", "tokens", "short"), ("per target", "tokens_per_target", ".1f"),
    ("padding", "padding_share", ".1%"), ("FLOP", "flop", ".3g"), ("hours", "hours", ".3g"),
    ("x formula", "speedup_formula", ".2f"), ("x tokens", "speedup_tokens", ".2f"), ("x FLOP", "speedup_flop", ".2f"),
)  # fmt: skip
MEASURED: Columns = (
    ("targets/s", "targets_per_second", ",.1f"), ("tokens/s", "tokens_per_second", ",.0f"),
    ("per target", "tokens_per_target", ".1f"), ("x targets/s", "speedup", ".2f"),
    ("x tokens", "speedup_formula", ".2f"), ("off by", "off_formula", "+.0%"),
)  # fmt: skip


DATA: Columns = (
    ("time", "hours", "span"), ("one process", "one_process_hours", "span"), ("core hours", "core_hours", ",.1f"),
    ("tasks", "tasks", ","), ("GiB a task", "task_gib", ".2f"), ("disk", "disk_gib", "gib"),
    ("more meanwhile", "beside_gib", "gib"),
)  # fmt: skip


def render(plan: Mapping[str, Any]) -> str:
    """Fixed width, at most 110 columns."""
    return "\n".join(_lines(plan)) + "\n"


def _data(plan: Mapping[str, Any]) -> Iterator[str]:
    """The data stages on a cluster."""
    data, gpu, paradigms = plan["cluster"], plan["gpu"], plan["paradigms"]
    times = [f"{cluster.span(paradigms[name]['hours'])} for {name}" for name in (DTI.name, BASELINE.name)]
    place = f"{_counted(data['machines'], 'machine')} of {_counted(data['cores'], 'core')}"
    yield f"{data['rows']:,} rows take {cluster.span(data['hours'])} from raw files to row plans on {place},"
    yield (
        f"{cluster.gib(data['most_disk_gib'])} of disk beside the raw files, and {' or '.join(times)} to train on"
        f" {gpu['count']} x {gpu['name']}."
    )
    yield ""
    yield from _table("data", DATA, data["stages"])
    yield ""
    plan_memory, reading = cluster.gib(data["rank_gib"]), cluster.span(data["check_hours"])
    yield f"data     with events.buckets={data['buckets']}; rates are those of a log of ratings; one process: what no"
    yield "         number of workers shortens, but the cores of its machine may"
    yield f"training {plan_memory} of each process for the plan, however long it is; one process of each machine"
    yield f"         reads tokens and plan before the first step, {reading}"
    yield ""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
    if "cluster" in plan:
        yield from _data(plan)
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
    for advice in plan["advice"]:
        yield f"advice   {advice}"
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
    yield from _table("", PLANNED, plan["paradigms"])
    yield ""
    yield "x: cheaper than sliding_window by (n+1)c+1 over (c+1)+nc/k; by this log's tokens; by FLOP, attention and"
    yield "padding included. Hours are a formula's: a model of a few million weights takes longer."
    if plan["measured"]:
        yield ""
        yield from _table("measured", MEASURED, plan["measured"])
        yield f"measured on {', '.join(sorted({row['hardware'] for row in plan['measured'].values()}))};"
        yield "off by: the speed-up in targets/s against the ratio of tokens a target, both of these very runs"


def _table(corner: str, columns: Columns, rows: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    lines = [[corner, *(header for header, _, _ in columns)]]
    lines += [[name, *(_cell(row.get(key), form) for _, key, form in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        cells = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def _cell(value: Any, form: str) -> str:
    """A value in a format; "short" is 1,234 below a million, above it with a unit: 1.23M, 4.56G."""
    if value is None:
        return "–"
    if form in ("span", "gib"):
        return cluster.span(value) if form == "span" else cluster.gib(value)
    if form != "short":
        return f"{value:{form}}"
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f}{letter}"
    return f"{value:,}"
