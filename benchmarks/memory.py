"""How large a micro-batch fits a GPU, by size of the model, what is trained, and paradigm, and how fast is it then?

Peak memory of training steps in the usual micro-batch, and the largest one that fits: whole rows of about --row-length
tokens, several micro-batches and an update, weights, gradients and moments counted. Sizes are tried, at most --trials
beside the usual one: twice the last that fitted, then where a straight line through two peaks meets the card's memory,
then halfway between what fits and what does not. On a GPU each size compiles once more. A call's rows take the place of
those of the same model and training in the file; all others stay.

    python -m benchmarks.memory --shape smollm2-135m --train all
    python -m benchmarks.memory --shape smollm2-135m --train all --activation-checkpointing
    python -m benchmarks.memory --tiny                       # the same code on a CPU, whose memory is not counted
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.lib import sizes
from benchmarks.lib.harness import parser, publish
from benchmarks.lib.steps import Bench, Measured, Variant
from benchmarks.lib.timing import affordable, gpus
from dti_pipeline.paradigms import DTI, SLIDING_WINDOW

VARIANTS = (Variant(SLIDING_WINDOW, 1, "dense"), Variant(DTI, 50), Variant(DTI, 180), Variant(SLIDING_WINDOW, 1))
#: Of a turn: the second is computed beside the gradients of the first.
MICRO_BATCHES = 2
#: The largest is known once what does not fit is this share larger.
EXACT = 0.04


def main() -> None:
    options = parser(__doc__, gpu=True)
    sizes.add_options(options)
    options.add_argument("--trials", type=int, default=4, help="sizes that are tried (default: %(default)s)")
    options.add_argument("--first", type=int, default=2, metavar="N", help="variants: the dense sliding window, dti at"
                         " k = 50 and at 180, the packed sliding window (default: %(default)s)")  # fmt: skip
    given = options.parse_args()
    sizes.complete(given)
    begun = time.monotonic()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # shapes change from trial to trial
    bench, rows = Bench(given), []
    left = given.budget_seconds - (time.monotonic() - begun)
    for variant in affordable(VARIANTS[: given.first], left):
        rows += row_of(bench, variant)
    if not rows:
        raise SystemExit("no micro-batch of one row fits")
    publish("memory", rows, given, gpus=gpus(bench.device), case=sizes.CASE)


def row_of(bench: Bench, variant: Variant) -> list[dict[str, Any]]:
    """The variant's row of the table; none where not even one row fits."""
    given, room, usual = bench.given, room_gib(bench.device), sizes.rows_per_batch(bench.given, variant.k)
    measured: dict[int, Measured] = {}
    most = largest(partial(peak_of, bench, variant, measured, room), usual, room, given.trials)
    if most is None:
        return []
    start = measured.get(usual)
    return [
        {
            "paradigm": variant.paradigm.name,
            "form": variant.form,
            "k": variant.k,
            **sizes.facts_of(given),
            "usual_tokens": start.tokens if start else None,
            "usual_peak_gib": round(start.peak_gib, 1) if start else None,
            "usual_tokens_per_second": pace(start) if start else None,
            "largest_rows": most,
            "largest_tokens": measured[most].tokens,
            "largest_peak_gib": round(measured[most].peak_gib, 1),
            "largest_tokens_per_second": pace(measured[most]),
            "room_gib": round(room, 1) if room < float("inf") else None,
            "trials": len(measured) - 1,
        }
    ]


def peak_of(bench: Bench, variant: Variant, measured: dict[int, Measured], room: float, rows: int) -> float | None:
    """Peak memory, GiB, of steps in micro-batches of so many rows, kept in ``measured``; None where they do not fit."""
    bench.forget()
    try:
        one = bench.prepare(variant, rows, MICRO_BATCHES)
        bench.step(one)
    except torch.OutOfMemoryError:
        fits = False
    else:
        measured[rows], fits = one, one.peak_gib <= room
    print(f"{variant}, {rows} rows: {f'{measured[rows].peak_gib:.1f} GiB' if fits else 'no memory'}", flush=True)
    return measured[rows].peak_gib if fits else None


def largest(peak: Callable[[int], float | None], usual: int, room: float, trials: int) -> int | None:
    """The most rows found to fit, ``usual`` tried first and ``trials`` sizes after it; None where none does."""
    peaks: dict[int, float] = {}
    rows, too_many = usual, None
    for _ in range(trials + 1):
        found = peak(rows)
        if found is None:
            too_many = rows
        else:
            peaks[rows] = found
        best = max(peaks, default=0)
        if too_many is not None and too_many - best <= max(1, EXACT * best):
            break
        rows = _next(peaks, too_many, room)
    return max(peaks, default=None)


def _next(peaks: dict[int, float], too_many: int | None, room: float) -> int:
    """Rows to try: more than fit, fewer than ``too_many``."""
    best = max(peaks, default=0)
    if len(peaks) >= 2:
        (less, low), (more, high) = sorted(peaks.items())[-2:]
        line = more + (room - high) * (more - less) / max(high - low, 1e-9)
        if too_many is None:
            return int(min(max(best + 1, line), 4 * best))
        if best < int(line) < too_many:
            return int(line)
    return 2 * best if too_many is None else (best + too_many) // 2


def room_gib(device: torch.device) -> float:
    """Memory of the card that no other process has, less what an allocator cannot hand out; no end of it on a CPU."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info()
    return (free + torch.cuda.memory_reserved()) / 2**30 * 0.97


def pace(one: Measured) -> int:
    """Tokens a second of a turn's micro-batches, update included."""
    return round(MICRO_BATCHES * one.tokens / ((sum(one.passes) + sum(one.updates)) / 1000))


if __name__ == "__main__":
    main()
