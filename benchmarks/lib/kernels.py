"""A profile of one training step: milliseconds by kind of kernel, as figures and as a picture."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dti_pipeline.evaluation.plots import new_figure

#: Kinds by a pattern of a kernel's name, the first that fits. The rest is norms, rotations, activations, sums and the
#: loss: kernels that the compiler fused, or torch's own elementwise ones. The project's own attention kernels, of
#: intervals and of [SUM] rows, have names that begin with an underscore; the compiler may number them.
NAMES = (
    ("attention backward", r"^_(interval_)?backward_(queries|keys)(_\d+)?$"),
    ("attention forward", r"^_(interval_)?forward(_\d+)?$"),
    (
        "attention backward",
        r"(flex|flash|fmha|sdpa|attention).*(bwd|backward|bprop)|(bwd|backward).*(flex|flash|fmha|sdpa)",
    ),
    ("attention forward", r"flex|flash|fmha|sdpa|scaled_dot_product|attention"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|cublas|matmul|aten::(mm|bmm|addmm|linear)|AddmmBackward|MmBackward"),
    ("copies", r"memcpy|memset|aten::(copy_|_to_copy|to|clone)$"),
    ("communication", r"nccl|gloo|c10d"),
)
REST = "norms, rotation, elementwise"
#: Kinds by the named part of the step that a kernel belongs to, whatever its name.
PARTS = {"mask": "mask", "update": "clipping and optimizer"}
KINDS = (*dict.fromkeys(kind for kind, _ in NAMES), REST, *PARTS.values(), "idle")


def profiled(step: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of one step by kind. The step is taken twice: the first one starts the profiler's machinery."""
    cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            with profile(activities=activities) as found:
                step()
                if cuda:
                    torch.cuda.synchronize()
        found.export_chrome_trace(str(Path(folder) / "trace.json"))
        events = json.loads((Path(folder) / "trace.json").read_text())["traceEvents"]
    return by_kind(events, "gpu" if cuda else "cpu")


def by_kind(events: Sequence[Mapping[str, Any]], where: str) -> dict[str, float]:
    """Milliseconds by kind of a trace in Chrome's format: of kernels on a GPU, of outermost operators on a CPU.

    Idle is the time between the first and the last in which none runs. Kernels of several streams that run at one
    time each count in full.
    """
    gpu = where == "gpu"
    work = {"kernel", "gpu_memcpy", "gpu_memset"} if gpu else {"cpu_op"}
    notes = "gpu_user_annotation" if gpu else "user_annotation"
    parts = [event for event in events if event.get("cat") == notes and event["name"] in PARTS]
    done = sorted((event for event in events if event.get("cat") in work), key=lambda event: event["ts"])
    if not gpu:
        done = _outermost(done)
    sums = dict.fromkeys(KINDS, 0.0)
    busy_until = done[0]["ts"]
    for event in done:
        start, end = event["ts"], event["ts"] + event["dur"]
        sums["idle"] += max(0.0, start - busy_until) / 1000
        busy_until = max(busy_until, end)
        sums[_kind(event, parts)] += event["dur"] / 1000
    return {kind: round(time, 3) for kind, time in sums.items()}


def _kind(event: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> str:
    for part in parts:
        if part["ts"] <= event["ts"] < part["ts"] + part["dur"]:
            return PARTS[part["name"]]
    return next((kind for kind, pattern in NAMES if re.search(pattern, event["name"], re.IGNORECASE)), REST)


def _outermost(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Operators that no other operator of their thread contains; ``events`` ascend in time."""
    kept, until = [], dict[Any, float]()
    for event in events:
        if event["ts"] >= until.get(event["tid"], float("-inf")):
            kept.append(event)
            until[event["tid"]] = event["ts"] + event["dur"]
    return kept


def draw(steps: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Bars side by side, readable in grey, to ``path``."""
    figure, axes = new_figure()
    figure.set_size_inches(10, 4.2)
    kinds = [kind for kind in KINDS if any(step[kind] for step in steps.values())]
    height = 0.8 / len(steps)
    for index, (name, step) in enumerate(steps.items()):
        total = sum(step.values())
        places = [line + index * height for line in range(len(kinds))]
        style = {"color": ("0.75", "0.35")[index % 2], "hatch": ("", "//")[index % 2], "edgecolor": "black"}
        bars = axes.barh(places, [step[kind] for kind in kinds], height, label=f"{name}: {total:.0f} ms", **style)
        axes.bar_label(bars, [f" {step[kind]:.1f} ms, {step[kind] / total:.0%}" for kind in kinds], fontsize=8)
    axes.set_yticks([line + height * (len(steps) - 1) / 2 for line in range(len(kinds))], kinds)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("milliseconds of one step")
    figure.legend(loc="outside upper left", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
