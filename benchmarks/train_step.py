"""How many more targets a second does a training step on a GPU learn from, by size of the model and what is trained?

Every variant in one process and in turn, on one set of random weights in the shape of a model: the project's model,
loss, clipping and optimizer step, LoRA of rank 16 or all weights (fp32 under bf16 autocast), histories of equal
interactions, medians of CUDA events after warm-up. The sliding window runs in two forms, packed with the same masked
kernel and as a dense batch of prompts under torch's fastest causal kernel; speed-ups are over the faster one. Each
variant has the row length, about --row-length, that its prompts fill best, and as many rows a micro-batch.

A timed turn is three micro-batches, queued one behind the other, and one update (clipping and optimizer). Rates are
those of a step of --targets-per-step targets for every variant: as many micro-batches as that takes, one update.
`product share` is that of TFLOP/s in what one large matrix product reaches in the same process; `first step seconds`
count the model's building, compiling and the first step: of the first variant with an empty cache ("cold") or a full
one ("cached"), of others what they compile beside ("after others"). A call's rows take the place of those of the same
model and training in the file; all others stay.

    python -m benchmarks.train_step                          # 8B: one GPU of 80 GB, five minutes and more of compiling
    python -m benchmarks.train_step --shape smollm2-135m --train all --first 4
    python -m benchmarks.train_step --budget-seconds 150     # the most important variants first, until time is up
    python -m benchmarks.train_step --only dense k50         # variants of one of these forms, paradigms, k or fixes
    python -m benchmarks.train_step --texts random           # of tokens that hardly come again: forgetting costs more
    python -m benchmarks.train_step --tiny                   # the same code on a CPU, to test it
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.lib import sizes
from benchmarks.lib.harness import parser, publish
from benchmarks.lib.kernels import draw, profiled
from benchmarks.lib.steps import Bench, Measured, Variant, faster_baseline, warmed_up
from benchmarks.lib.timing import gpus, product_teraflops
from dti_pipeline.paradigms import DTI, DTI_GROWING, DTI_ISOLATED, SLIDING_WINDOW

#: The most important ones first: time may run out.
VARIANTS = (
    Variant(SLIDING_WINDOW, 1, "dense"),
    Variant(SLIDING_WINDOW, 1),
    Variant(DTI, 50),
    Variant(DTI, 180),
    Variant(DTI, 50, sum_position="nope_alibi", forgetting="linear"),
    Variant(DTI_GROWING, 50),
    Variant(DTI_ISOLATED, 50),
    Variant(DTI, 5),
    Variant(DTI, 50, sum_position="rope_alibi"),
    Variant(DTI, 50, forgetting="linear"),
    Variant(DTI, 50, sum_position="nope_alibi"),
    Variant(DTI, 10),
    Variant(DTI, 20),
)


def main() -> None:
    options = parser(__doc__, gpu=True)
    sizes.add_options(options)
    options.add_argument("--steps", type=int, default=3, help="turns of each variant, after two that are not counted")
    options.add_argument("--first", type=int, metavar="N", help="the N most important variants: 4 are both forms of the"
                         " sliding window, and dti at k = 50 and 180")  # fmt: skip
    options.add_argument("--only", nargs="+", metavar="WORD", help="variants that have one of these words")
    options.add_argument("--profile", type=Path, metavar="PNG", help="a step by kind of kernel, also drawn")
    given = options.parse_args()
    sizes.complete(given)
    begun = time.monotonic()
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # shapes change from step to step
    bench = Bench(given)
    wanted = [v for v in VARIANTS[: given.first] if given.only is None or any(v.has(word) for word in given.only)]
    measured = warmed_up(bench, wanted, given.budget_seconds - (time.monotonic() - begun), given.steps)
    if not measured:
        raise SystemExit("no variant could be measured")
    for _ in range(given.steps):
        for one in measured:
            bench.step(one)
    name = "train_step" if given.frozen_weights == "plain" else f"train_step_{given.frozen_weights}"
    publish(name, table(bench, measured), given, gpus=gpus(bench.device), case=sizes.CASE)
    if given.profile:
        profile(bench, measured, name, given.profile)


def table(bench: Bench, measured: list[Measured]) -> list[dict[str, Any]]:
    """A row a variant; speed-ups are over the fastest form of the sliding window, bounds are arithmetic's."""
    given, targets = bench.given, bench.given.targets_per_step
    base, product = faster_baseline(measured, targets), product_teraflops(bench.device)
    rows = []
    for one in measured:
        seconds, variant = one.seconds(targets), one.variant
        token, tflops = one.work[0].batches[0].token, bench.flop(one, targets) / seconds / 1e12
        rows.append(
            {
                "paradigm": variant.paradigm.name,
                "form": variant.form,
                "fixes": variant.fixes,
                "k": variant.k,
                **sizes.facts_of(given),
                "tokens_per_second": round(one.tokens / one.targets * targets / seconds),
                "targets_per_second": round(targets / seconds, 1),
                "speedup": round(base.seconds(targets) / seconds, 2) if base else None,
                "bound": round(bench.flop(base, targets) / bench.flop(one, targets), 2) if base else None,
                "tflops": round(tflops, 1),
                "product_share": round(tflops / product, 3),
                "pass_ms": round(statistics.median(one.passes), 1),
                "pass_ms_min": round(min(one.passes), 1),
                "pass_ms_max": round(max(one.passes), 1),
                "update_ms": round(statistics.median(one.updates), 2),
                "targets_per_step": targets,
                "targets_per_pass": one.targets,
                "tokens_per_pass": one.tokens,
                "row_length": token.shape[1],
                "distinct_tokens_per_pass": len(token.unique()),
                "padding_share": round(1 - one.tokens / token.numel(), 4),
                "peak_memory_gib": round(one.peak_gib, 1),
                "first_step_seconds": round(one.first_step_seconds, 1),
                "compilation": one.compilation,
            }
        )
    return rows


def profile(bench: Bench, measured: list[Measured], name: str, path: Path) -> None:
    """A step of every variant by kind of kernel, as a table; of the faster sliding window and dti at k = 50, drawn."""
    steps = {name_of(one): profiled(lambda one=one: bench.step(one)) for one in measured}
    rows = [
        {"model": bench.shape.name, "trained": bench.given.train, "step": step}
        | {f"{kind} ms": time for kind, time in spent.items()}
        for step, spent in steps.items()
    ]
    publish(f"{name}_profile", rows, bench.given, gpus=gpus(bench.device), case=("model", "trained"))
    sides = faster_baseline(measured, 1), next((one for one in measured if one.variant == Variant(DTI, 50)), None)
    draw({name: steps[name] for name in map(name_of, filter(None, sides))}, path)


def name_of(one: Measured) -> str:
    passes = len(one.work)
    return f"{one.variant}: {passes * one.targets} targets, {passes * one.tokens:,} tokens"


if __name__ == "__main__":
    main()
