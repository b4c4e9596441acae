"""How long does one attention layer take, by intervals, under FlexAttention, and as a dense batch of causal prompts?

Heads of the shapes that users train, histories of equal interactions, a micro-batch of --tokens tokens. `intervals` is
the project's kernel, `flex` FlexAttention under the same mask with all its defaults, `dense causal` torch's causal SDPA
over the sliding window's prompts, one a row, which needs no mask. Medians of a GPU's own clock after warm-up. TFLOP/s
count visible pairs only: 4 D a head and pair forward, 2.5 times that backward.

    python -m benchmarks.attention                          # one GPU, some four minutes
    python -m benchmarks.attention --only 9/3x64 --prefix 32
    python -m benchmarks.attention --sweep                  # the tiles of our kernels: the fastest of those tried
    python -m benchmarks.attention --tiny                   # bands on a CPU, to test the script
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.lib import llama
from benchmarks.lib.harness import parser, publish
from benchmarks.lib.timing import affordable, gpus, median_seconds
from dti_pipeline.modeling.attention.backends import Banded, Fused
from dti_pipeline.modeling.masks.visibility import SUM, Intervals, intervals
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import DTI, DTI_GROWING, DTI_ISOLATED, SLIDING_WINDOW, Paradigm


@dataclass(frozen=True)
class Heads:
    """Heads of queries, of keys, and their width."""

    queries: int
    keys: int
    width: int

    def __str__(self) -> str:
        return f"{self.queries}/{self.keys}x{self.width}"


#: SmolLM2-135M, Qwen2.5-0.5B, SmolLM2-360M, Llama-3.2-1B, Qwen2.5-1.5B, Qwen3-0.6B, Gemma 3 270M, Llama-3.1-8B.
HEADS = [
    Heads(*numbers)
    for numbers in (
        (9, 3, 64), (14, 2, 64), (15, 5, 64), (32, 8, 64), (12, 2, 128), (16, 8, 128), (4, 1, 256), (32, 8, 128),
    )
]  # fmt: skip
#: Those that the sweep tries, one for each width.
SWEPT = [Heads(12, 12, 32), Heads(9, 3, 64), Heads(12, 2, 128), Heads(4, 1, 256)]
MASKS: list[tuple[Paradigm, int]] = [(SLIDING_WINDOW, 1), (DTI, 50), (DTI_GROWING, 50), (DTI_ISOLATED, 50)]
#: Tiles (rows, keys, warps, stages) of queries' kernels and of keys'.
QUERY_TILES = [
    (128, 64, 4, 2), (128, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 4, 3), (128, 128, 8, 2),
    (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 3), (64, 64, 8, 2), (64, 32, 4, 2), (128, 32, 8, 2),
]  # fmt: skip
KEY_TILES = [
    (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 8, 2), (64, 128, 8, 3), (64, 128, 4, 2), (128, 64, 8, 2), (32, 64, 4, 3),
    (128, 128, 8, 2), (32, 128, 4, 3), (32, 128, 8, 2), (64, 64, 8, 2), (32, 64, 4, 2), (32, 32, 4, 2),
]  # fmt: skip


class Case:
    """Queries, keys, values and a mask."""

    def __init__(self, heads: Heads, paradigm: Paradigm, k: int, given: argparse.Namespace, dense: bool = False):
        self.heads, self.paradigm, self.k = heads, paradigm, k
        self.device = torch.device("cpu" if given.tiny else "cuda")
        row = min(given.tokens, 8192)
        plan, prompts = llama.plan(k, row, given.tokens_per_interaction, 1000, max(1, given.tokens // row))
        height = len(plan)
        if dense:
            plan, _ = llama.plan(k, row, given.tokens_per_interaction, 1000, max(1, given.tokens // row), dense=True)
        if given.prefix:
            store = replace(plan.store, prefix=np.full(given.prefix, 5, np.int32))
            plan = replace(plan, store=store, row_length=plan.row_length + prompts * given.prefix)
        layout = plan.assemble(np.arange(len(plan)))
        batch = Batch.of(layout, plan.store.label).to(self.device)
        self.tokens = int((layout.kind != Kind.PAD).sum())
        self.has_prefix = bool(given.prefix)
        self.spans = intervals(batch.tokens, paradigm, llama.CONTEXT)
        self.height, self.length = batch.token.shape
        self.pairs = _visible_pairs(self.spans) if not dense else 0
        assert dense or self.height == height
        generator = torch.Generator(self.device).manual_seed(7)
        dtype = torch.float32 if given.tiny else torch.bfloat16

        def drawn(count: int) -> Tensor:
            shape = (self.height, self.length, count, heads.width)
            return torch.randn(shape, generator=generator, device=self.device, dtype=dtype).transpose(1, 2)

        self.query, self.key, self.value = drawn(heads.queries), drawn(heads.keys), drawn(heads.keys)
        self.direction = drawn(heads.queries)

    def milliseconds(self, attend: Callable[..., Tensor], repeats: int) -> tuple[float, float]:
        """Of the forward pass, and of the backward pass."""
        given = [x.detach().requires_grad_() for x in (self.query, self.key, self.value)]
        out = attend(*given)

        def backward() -> None:
            torch.autograd.grad(out, given, self.direction, retain_graph=True)

        def forward() -> None:
            with torch.no_grad():
                attend(*given)

        return _milliseconds(forward, self.device, repeats), _milliseconds(backward, self.device, repeats)


def _visible_pairs(spans: Intervals) -> int:
    """Pairs of a query and a key that it sees, where every query knows all labels before it."""
    is_sum = (spans.kind == SUM).long()
    hidden = torch.nn.functional.pad(is_sum.cumsum(1), (1, 0))
    slot = torch.arange(spans.first.shape[1], device=spans.first.device).expand_as(spans.first)
    first, prompt, text = (x.long() for x in (spans.first, spans.prompt, spans.prompt_text))
    seen = slot + 1 - first - (hidden.gather(1, slot + 1) - hidden.gather(1, first)) + is_sum
    prefix = (torch.minimum(text, first) - prompt).clamp(min=0)
    return int((seen + prefix).sum())


def _milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    if device.type != "cuda":
        return median_seconds(call, repeats) * 1000
    from triton.testing import do_bench

    return float(do_bench(call, warmup=20, rep=20 * repeats, return_mode="median"))


def forms(case: Case, flex: Flex) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    scale = case.heads.width**-0.5
    if case.device.type != "cuda":
        banded = Banded.of(case.spans)
        yield "bands", lambda q, k, v: banded.attend(nn.Identity(), q, k, v, scale, None)
        return
    ours = Fused.of(case.spans, case.has_prefix, late=False)
    yield "intervals", lambda q, k, v: ours.attend(nn.Identity(), q, k, v, scale, None)
    yield "flex", flex.of(case, scale)


class Flex:
    """FlexAttention for cases of the same heads. Compiled once for each shape: a mask reads what the last case of its
    shape has written."""

    def __init__(self) -> None:
        self._flex: Any = torch.compile(flex_attention, dynamic=False)
        self._masks: dict[tuple[int, int, bool], tuple[list[Tensor], Callable[..., Tensor]]] = {}

    def of(self, case: Case, scale: float) -> Callable[..., Tensor]:
        """Attention under the mask of a case, valid until the next."""
        shape = (case.height, case.length, case.has_prefix)
        if shape not in self._masks:
            self._masks[shape] = _mask(case)
        written, mask = self._masks[shape]
        for buffer, numbers in zip(written, case.spans, strict=True):
            buffer.copy_(numbers)
        made = create_block_mask(mask, case.height, None, case.length, case.length, case.device)
        group = case.heads.queries != case.heads.keys
        return lambda q, k, v: self._flex(q, k, v, block_mask=made, scale=scale, enable_gqa=group)


def _mask(case: Case) -> tuple[list[Tensor], Callable[..., Tensor]]:
    """Buffers for the intervals of cases of a shape, and the mask function that reads them."""
    buffers = [torch.zeros_like(x) for x in case.spans]
    first, prompt, prompt_text, *_, kind = buffers
    has_prefix = case.has_prefix

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = k >= first[b, q]
        if has_prefix:
            inside = inside | ((k >= prompt[b, q]) & (k < prompt_text[b, q]))
        return inside & (k <= q) & ((kind[b, k] != SUM) | (k == q))

    return buffers, mask


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])


def row(case: Case, form: str, times: tuple[float, float], pairs: int) -> dict[str, Any]:
    forward, backward = times
    flop = 4 * case.heads.width * case.heads.queries * pairs
    return {
        "heads": str(case.heads),
        "paradigm": case.paradigm.name,
        "k": case.k,
        "prefix": case.has_prefix,
        "form": form,
        "tokens": case.tokens,
        "forward_ms": round(forward, 3),
        "backward_ms": round(backward, 3),
        "forward_tflops": round(flop / forward / 1e9, 1),
        "backward_tflops": round(2.5 * flop / backward / 1e9, 1),
    }


def measured(given: argparse.Namespace) -> list[dict[str, Any]]:
    chosen = [heads for heads in HEADS if given.only is None or str(heads) in given.only]
    if given.tiny:
        chosen = [Heads(3, 1, 16)]
    rows = []
    for heads in affordable(chosen, given.budget_seconds):
        torch.compiler.reset()
        flex = Flex()
        for paradigm, k in MASKS:
            case = Case(heads, paradigm, k, given)
            for form, attend in forms(case, flex):
                try:
                    rows.append(row(case, form, case.milliseconds(attend, given.repeats), case.pairs))
                except Exception as error:  # FlexAttention refuses some shapes
                    print(f"{heads}, {paradigm}, {form}: {str(error).splitlines()[0][:200]}")
            if paradigm is SLIDING_WINDOW:
                prompts = Case(heads, paradigm, k, given, dense=True)
                rows.append(row(prompts, "dense causal", prompts.milliseconds(causal, given.repeats), case.pairs))
            print(rows[-2:], flush=True)
    return rows


def sweep(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Of each width and kernel all tiles that fit, the fastest first."""
    jobs = [
        (heads, kernel, tile)
        for heads in SWEPT
        if given.only is None or str(heads) in given.only
        for kernel, choices in (("forward", QUERY_TILES), ("queries", QUERY_TILES), ("keys", KEY_TILES))
        for tile in choices
    ]
    with ProcessPoolExecutor(given.processes, mp_context=get_context("spawn")) as pool:
        usable = list(pool.map(_compiles, jobs))
    rows = []
    cases: dict[Heads, Case] = {}
    for (heads, kernel, tile), fits in zip(jobs, usable, strict=True):
        if fits is not True:
            print(f"{heads} {kernel} {tile}: {fits}")
            continue
        if heads not in cases:
            cases = {heads: Case(heads, DTI, 50, given)}
        time = _kernel_time(cases[heads], kernel, tile, given.repeats)
        rows.append({"heads": str(heads), "kernel": kernel, "rows, keys, warps, stages": str(tile), "ms": time})
    rows.sort(key=lambda row: (row["heads"], row["kernel"], row["ms"]))
    return rows


def _compiles(job: tuple[Heads, str, tuple[int, ...]]) -> bool | str:
    """Compile a kernel, in a process of its own: it is then in Triton's cache."""
    heads, kernel, tile = job
    given = argparse.Namespace(tiny=False, tokens=8192, tokens_per_interaction=17, prefix=0)
    try:
        _kernel_time(Case(heads, DTI, 50, given), kernel, tile, 0)
    except Exception as error:
        return str(error).splitlines()[0][:200]
    return True


def _kernel_time(case: Case, kernel: str, tile: tuple[int, ...], repeats: int) -> float:
    from dti_pipeline.modeling.attention import kernel as kernels

    width = max(32, kernels.padded_width(case.heads.width))
    kernels.HOPPER[width] = kernels.HOPPER[width] | {kernel: kernels.Tiles(*tile)}
    ours = Fused.of(case.spans, case.has_prefix, late=False)
    query, key, value, direction = (x.transpose(1, 2) for x in (case.query, case.key, case.value, case.direction))
    level = torch.zeros(query.shape[:3], device=case.device)
    out, delta = torch.zeros_like(query), torch.zeros_like(level)
    made = {
        "forward": [out, level],
        "queries": [out, level, direction, delta, torch.empty_like(query)],
        "keys": [out, level, direction, delta, torch.empty_like(key), torch.empty_like(value)],
    }[kernel]

    def call() -> None:
        scale, flags = case.heads.width**-0.5, (case.has_prefix, False)
        kernels.launch(kernel, [query, key, value], list(ours.facts), made, scale, *flags)

    call()
    torch.cuda.synchronize()
    return round(_milliseconds(call, case.device, repeats), 4) if repeats else 0.0


def main() -> None:
    options = parser(__doc__, gpu=True)
    options.add_argument("--tokens", type=int, default=65536, help="of a micro-batch, about (default: %(default)s)")
    options.add_argument("--tokens-per-interaction", type=int, default=17)
    options.add_argument("--prefix", type=int, default=0, metavar="TOKENS", help="an instruction before each prompt")
    options.add_argument("--only", nargs="+", metavar="HEADS", help="such as 9/3x64")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--sweep", action="store_true", help="time the tiles of our kernels instead")
    options.add_argument("--processes", type=int, default=12, help="that compile in a sweep")
    given = options.parse_args()
    if given.tiny:
        given.tokens, given.tokens_per_interaction = 384, 4
    rows = sweep(given) if given.sweep else measured(given)
    publish(
        "attention_tiles" if given.sweep else "attention",
        rows,
        given,
        gpus=gpus(torch.device("cpu" if given.tiny else "cuda")),
    )


if __name__ == "__main__":
    main()
