"""How long do the kernels of the [SUM] rows take in a layer, by their tiles?

Under both fixes of the paper, at the heads of models that users train: histories of equal interactions in `dti` prompts
of k = 50, a micro-batch of --tokens tokens. Of each kernel all tiles that compile, the fastest first; `chosen` is what
:func:`dti_pipeline.modeling.attention.sums.kernel.tiles` takes. Medians of a GPU's own clock after warm-up.

    python -m benchmarks.sum_attention                      # one GPU, some two minutes
    python -m benchmarks.sum_attention --only 9/3x64
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from benchmarks.attention import Heads
from benchmarks.lib import llama
from benchmarks.lib.harness import parser, publish
from benchmarks.lib.timing import gpus
from dti_pipeline.modeling.attention.sums.rows import Rule
from dti_pipeline.modeling.masks.visibility import intervals
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.paradigms import DTI

#: SmolLM2-135M, Llama-3.2-1B, Qwen2.5-1.5B, Gemma 3 270M, Llama-3.1-8B.
HEADS = [Heads(*numbers) for numbers in ((9, 3, 64), (32, 8, 64), (12, 2, 128), (4, 1, 256), (32, 8, 128))]
KERNELS = ("forward", "queries", "keys")
#: Rows, keys, warps, stages.
TILES = [*product((16, 32, 64), (32, 64), (4,), (1, 2, 3)), *product((16, 32), (16, 32), (2, 4), (1, 2))]


class Case:
    """Queries of [SUM]s, keys and values of a state and of the first layer's input, and the rule."""

    def __init__(self, heads: Heads, tokens: int, tokens_per_interaction: int):
        row = min(tokens, 8192)
        plan, _ = llama.plan(50, row, tokens_per_interaction, 1000, max(1, tokens // row))
        layout = plan.assemble(np.arange(len(plan)))
        batch = Batch.of(layout, plan.store.label).to(torch.device("cuda"))
        rule = Rule(
            spans=intervals(batch.tokens, DTI, llama.CONTEXT),
            position=batch.position,
            interaction=batch.interaction,
            seen=batch.seen,
            context=llama.CONTEXT,
            alibi=True,
            family="linear",
            maximum=0.5,
        )
        height, length = batch.token.shape
        self.facts = [*rule.facts(batch.sum_slot, batch.sum_valid), torch.rand(heads.queries, device="cuda")]
        self.numbers = [heads.width**-0.5, 1e-5, rule.maximum, float(llama.CONTEXT)]
        sums = batch.sum_slot.shape[1]

        def drawn(slots: int, count: int) -> torch.Tensor:
            return torch.randn(height, slots, count, heads.width, device="cuda", dtype=torch.bfloat16)

        self.query, self.direction = drawn(sums, heads.queries), drawn(sums, heads.queries)
        self.states = [drawn(length, heads.keys) for _ in range(4)]
        hh, oo = (1 + torch.rand(height, length, device="cuda") for _ in range(2))
        self.states.append(torch.stack([hh, 0.1 * hh, oo]))

    def milliseconds(self, name: str, repeats: int) -> float:
        """Of one kernel; without ``repeats`` it is compiled and run once."""
        from dti_pipeline.modeling.attention.sums.kernel import launch

        level = torch.zeros(self.query.shape[:3], device="cuda")
        made = [torch.empty_like(self.query), level]
        if name != "forward":
            found = [torch.empty_like(self.query)]
            if name == "keys":
                height, length, kv_heads, _ = self.states[0].shape
                found = [*map(torch.empty_like, self.states[:4]), level.new_empty(3, height, kv_heads, length)]
            made = [level, self.direction, torch.zeros_like(level), *found]

        def call() -> None:
            launch(name, [self.query, *self.states, *self.facts, *made], self.numbers, "linear", True)

        call()
        torch.cuda.synchronize()
        if not repeats:
            return 0.0
        from triton.testing import do_bench

        return round(float(do_bench(call, warmup=20, rep=20 * repeats, return_mode="median")), 4)


def with_tiles(case: Case, name: str, cut: tuple[int, ...] | None, repeats: int) -> float:
    """Of a kernel in other tiles than its own."""
    from dti_pipeline.modeling.attention.sums import kernel

    own = kernel.tiles
    if cut is not None:
        kernel.tiles = lambda *_: kernel.Tiles(*cut)
    try:
        return case.milliseconds(name, repeats)
    finally:
        kernel.tiles = own


def compiles(job: tuple[Heads, str, tuple[int, ...] | None, int]) -> str:
    """Compile a kernel, in a process of its own: it is then in Triton's cache. The reason where it does not."""
    heads, name, cut, tokens_per_interaction = job
    try:
        with_tiles(Case(heads, 8192, tokens_per_interaction), name, cut, 0)
    except Exception as error:
        return str(error).splitlines()[0][:200]
    return ""


def swept(given: argparse.Namespace) -> list[dict[str, Any]]:
    chosen = [heads for heads in HEADS if given.only is None or str(heads) in given.only]
    jobs = [
        (heads, name, cut, given.tokens_per_interaction)
        for heads in chosen
        for name in KERNELS
        for cut in (None, *dict.fromkeys(TILES))
    ]
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        refused = list(pool.map(compiles, jobs))
    cases = {heads: Case(heads, given.tokens, given.tokens_per_interaction) for heads in chosen}
    rows = []
    for (heads, name, cut, _), reason in zip(jobs, refused, strict=True):
        if reason:
            print(f"{heads} {name} {cut}: {reason}")
            continue
        tried = "chosen" if cut is None else str(cut)
        rows.append({
            "heads": str(heads), "kernel": name, "rows, keys, warps, stages": tried,
            "ms": with_tiles(cases[heads], name, cut, given.repeats),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (row["heads"], row["kernel"], row["ms"]))


def main() -> None:
    options = parser(__doc__, gpu=True)
    options.add_argument("--tokens", type=int, default=65536, help="of a micro-batch, about (default: %(default)s)")
    options.add_argument("--tokens-per-interaction", type=int, default=17)
    options.add_argument("--only", nargs="+", metavar="HEADS", help="such as 9/3x64")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--processes", type=int, default=12, help="that compile")
    given = options.parse_args()
    publish("sum_attention_tiles", swept(given), given, gpus=gpus(torch.device("cuda")))


if __name__ == "__main__":
    main()
