"""What does attention cost in a layer of an 8B model, and what do its kernels' options and the paper's fixes change?

Attention alone, forward and backward, on rows of equal prompts: 32 heads of 128 in groups of four, bfloat16, n = 20, 30
tokens an interaction. The sliding window under torch's causal flash kernel (a batch of prompts) and under the masked
kernel (prompts packed); dti packed, with heads of a group together and [SUM]s out of the keys' way or not, with each
set of options, and with its [SUM] rows under another rule. Medians of CUDA events; the first calls, which compile, are
not counted. A variant that this card or torch cannot do says so.

    python benchmarks/attention.py                         # one GPU, some 5 s of compiling a variant
    python benchmarks/attention.py --budget-seconds 80     # the most important ones first, until time is up
    python benchmarks/attention.py --tiny                  # on a CPU, forward only; its figures say nothing
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from harness import parser, publish
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from dti_pipeline.modeling.attention.backends import HOPPER, View, attend
from dti_pipeline.modeling.attention.distance import alibi_slopes
from dti_pipeline.modeling.attention.layers import LayerMemory
from dti_pipeline.modeling.attention.reordered import TextMasks
from dti_pipeline.modeling.attention.sums.rows import Initial, Rule, SumRows, needed, sum_rows
from dti_pipeline.modeling.masks.visibility import BlockMasks, Tokens, intervals, visible
from dti_pipeline.modeling.speed.distinct import Distinct
from dti_pipeline.packing.layout import Kind
from dti_pipeline.planning.cost import PAIR_FLOP

CONTEXT, INTERACTION = 20, 30
REPEATED = 8  # places where a token stands, in the mean: fewer than in real texts (llama.log)
QUEUED = 20_000_000  # cycles of the GPU's clock, some 10 ms


@dataclass(frozen=True)
class Variant:
    """One way to attend. ``options`` are the kernels', of which forward's and backward's can be judged apart."""

    name: str
    k: int = 50
    paradigm: str = "dti"
    options: dict[str, Any] = field(default_factory=lambda: HOPPER[128])
    flash: bool = False
    sums: bool = True  # False: the same prompts without their [SUM]s
    together: int = 4  # heads of a group that are rows of one block of queries
    moved: bool = True  # [SUM]s are behind all other keys
    position: str = "rope"
    forgetting: str = "none"


def options(forward: dict[str, Any], backward: dict[str, Any], **both: Any) -> dict[str, Any]:
    """Options of both kernels: the two are compiled together and timed apart, so a variant tries one of each."""
    return {**{f"fwd_{k}": v for k, v in forward.items()}, **{f"bwd_{k}": v for k, v in backward.items()}, **both}


#: Small blocks waste least at the edges of the band (620 keys), large ones fill the tensor cores better. Options
#: must divide the mask's blocks of 128.
VARIANTS = (
    Variant("sliding window, flash", 1, "sliding_window", flash=True),
    Variant("sliding window, masked", 1, "sliding_window"),
    Variant("dti"),
    Variant("dti, head by head", together=1),
    Variant("dti, [SUM]s among the keys", moved=False),
    Variant("dti, both", together=1, moved=False),
    Variant("dti, torch's options", options={}),
    Variant("dti without [SUM]s", sums=False, moved=False),
    Variant("dti, [SUM] nope_alibi and forgetting", position="nope_alibi", forgetting="linear"),
    Variant("dti, [SUM] rope_alibi", position="rope_alibi"),
    Variant("dti_growing", paradigm="dti_growing"),
    Variant("dti_isolated", paradigm="dti_isolated"),
    Variant("dti, fwd 128x64 of 3 stages", options=HOPPER[128] | options({"BLOCK_N": 64, "num_stages": 3}, {})),
    Variant("dti, bwd 2 stages", options=HOPPER[128] | options({}, {"num_stages": 2})),
    Variant("dti, bwd 64x64 of 4 warps", options=HOPPER[128] | options({}, {
        "BLOCK_M1": 64, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 64, "num_warps": 4})),
    Variant("dti, bwd 32x128", options=HOPPER[128] | options({}, {"BLOCK_M1": 32, "BLOCK_N2": 32})),
    Variant("dti, fwd and bwd by TMA", options=HOPPER[128] | {"USE_TMA": True}),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Of a layer and a row."""

    heads: int = 32
    kv_heads: int = 8
    width: int = 128
    hidden: int = 4096
    tokens: int = 10768


class Layer(nn.Module):
    """What forgetting needs of a layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.head_dim = size.width
        self.input_layernorm = nn.RMSNorm(size.hidden, eps=1e-5)
        self.k_proj, self.v_proj = (nn.Linear(size.hidden, size.kv_heads * size.width, bias=False) for _ in "kv")
        self.requires_grad_(False)


def row(variant: Variant, size: Size, device: torch.device) -> tuple[Tokens, int]:
    """As many whole prompts as a row of ``size.tokens`` holds, (1, L); and how many."""
    text = [int(Kind.TEXT)] * (INTERACTION - 1)
    target = [*text, *([int(Kind.SUM)] if variant.sums else []), int(Kind.LABEL)]
    interactions = [[*text, int(Kind.LABEL)]] * CONTEXT + [target] * variant.k
    prompt = [(i, kind) for i, interaction in enumerate(interactions) for kind in interaction]
    count = size.tokens // len(prompt)
    length = -(-count * len(prompt) // 128) * 128
    filling = length - count * len(prompt)
    document = [d for d in range(count) for _ in prompt] + [count] * filling
    interaction = [i for i, _ in prompt] * count + [0] * filling
    kind = [k for _, k in prompt] * count + [int(Kind.PAD)] * filling
    made = (torch.tensor([x], dtype=torch.int32, device=device) for x in (document, interaction, kind))
    return Tokens(*made), count


def of_sums(variant: Variant, tokens: Tokens, size: Size, matrix: Tensor) -> SumRows:
    """As under LoRA, where three embeddings are trained, in texts of the tokens of ``matrix`` (U, E) in turn."""
    slot = (tokens.kind == Kind.SUM).nonzero()[:, 1][None]
    position = torch.arange(tokens.kind.shape[1], device=slot.device)[None]
    rule = Rule(
        intervals(tokens, variant.paradigm, CONTEXT),
        position,
        tokens.interaction.long(),
        CONTEXT,
        alibi=variant.position != "rope",
        family=variant.forgetting,
        maximum=1.0,
    )
    valid = torch.ones_like(slot, dtype=torch.bool)
    slopes = alibi_slopes(size.heads).to(slot.device)
    sizes = needed(slot, valid, rule.spans).rounded()
    return sum_rows(
        slot, valid, rule, slopes, sizes, keep_rotation=variant.position != "nope_alibi",
        initial=initial(matrix, position.shape[1]) if variant.forgetting != "none" else None,
    )  # fmt: skip


def initial(matrix: Tensor, length: int) -> Initial:
    token = torch.arange(length, device=matrix.device)[None] % len(matrix)
    state = matrix.detach()[token]
    distinct = replace(Distinct.of(token, state, len(matrix)), state=matrix)
    return Initial(state, matrix[:3], token[..., None] == token[0, :3], distinct)


def prepared(variant: Variant, size: Size, device: torch.device) -> tuple[Callable[[], Tensor], list[Tensor], Tokens]:
    """A call that attends, the tensors whose gradients it has, and the row."""
    tokens, count = row(variant, size, device)
    length = tokens.kind.shape[1]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch = (count, length // count) if variant.flash else (1, length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype, requires_grad=device.type == "cuda")

    # As a layer makes them: tokens first, then heads.
    query, key, value = (draw(*batch, h, size.width) for h in (size.heads, size.kv_heads, size.kv_heads))
    if variant.flash:

        def flash() -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return flash, [query, key, value], tokens

    hidden, matrix = draw(1, length, size.hidden), draw(length // REPEATED, size.hidden)
    layer = Layer(size).to(device, dtype)
    angle = torch.rand(1, length, size.width // 2, device=device).repeat(1, 1, 2)
    memory = LayerMemory(layer.input_layernorm, hidden, angle.cos().to(dtype), angle.sin().to(dtype))
    sums = of_sums(variant, tokens, size, matrix) if variant.sums else None
    together = min(variant.together, size.heads // size.kv_heads)
    kind = TextMasks if variant.moved and device.type == "cuda" else BlockMasks
    masks = kind(1, length, device, has_prefix=False, heads=together)
    spans = intervals(tokens, variant.paradigm, CONTEXT)
    blind = kind is BlockMasks and sums is not None and sums.differ
    mask = masks.build(spans.blind_sums() if blind else spans)
    texts = masks.keys if isinstance(masks, TextMasks) else None
    view = View(block_mask=mask, texts=texts, options=variant.options or None, sums=sums)

    def masked(q: Tensor, k: Tensor, v: Tensor, view: View, memory: LayerMemory) -> Tensor:
        return attend(layer, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, dti=view, layer=memory)[0]

    call = torch.compile(masked, dynamic=False, fullgraph=True) if device.type == "cuda" else masked
    inputs = [query, key, value, *([hidden, matrix] if variant.forgetting != "none" else [])]
    return lambda: call(query, key, value, view, memory), inputs, tokens


def milliseconds(call: Callable[[], Tensor], inputs: list[Tensor], repeats: int) -> tuple[float, float | None]:
    """Medians of a forward and of a backward pass; on a CPU a forward pass alone."""
    if not inputs[0].is_cuda:
        begun = time.perf_counter()
        with torch.no_grad():
            call()
        return (time.perf_counter() - begun) * 1000, None
    times: list[list[float]] = [[], []]
    for turn in range(repeats + 3):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        # Launched while the GPU is still at this: a compiled call's guards take some of a forward pass's time.
        torch.cuda._sleep(QUEUED)
        events[0].record()
        out = call()
        events[1].record()
        direction = torch.ones_like(out)
        events[2].record()
        torch.autograd.grad(out, inputs, direction)
        events[3].record()
        torch.cuda.synchronize()
        if turn >= 3:
            times[0].append(events[0].elapsed_time(events[1]))
            times[1].append(events[2].elapsed_time(events[3]))
    return statistics.median(times[0]), statistics.median(times[1])


def measured(variant: Variant, size: Size, device: torch.device, repeats: int) -> dict[str, Any]:
    torch._dynamo.reset()
    call, inputs, tokens = prepared(variant, size, device)
    forward, backward = milliseconds(call, inputs, repeats)
    real = int((tokens.kind != Kind.PAD).sum())
    pairs = int(visible(tokens, variant.paradigm, CONTEXT).sum()) - (tokens.kind.shape[1] - real)
    flop = PAIR_FLOP * pairs * size.heads * size.width
    both = forward + (backward or 0.0)
    return {
        "tokens": real,
        "keys_a_token": round(pairs / real, 1),
        "forward_ms": round(forward, 3),
        "backward_ms": None if backward is None else round(backward, 3),
        "us_per_1000_tokens": round(both * 1e6 / real, 1),
        "tflops": round(flop / both / 1e9, 1),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=10, help="of each variant, after three not counted")
    arguments.add_argument("--budget-seconds", type=float, default=float("inf"), help="begin no variant beyond it")
    arguments.add_argument("--only", nargs="+", metavar="WORD", help="variants whose name has one of these words")
    arguments.add_argument("--tiny", action="store_true", help="small, on a CPU")
    given = arguments.parse_args()
    size = Size(4, 2, 16, 32, 4400) if given.tiny else Size()
    device = torch.device("cpu" if given.tiny else "cuda")
    rows, begun, longest = [], time.monotonic(), 0.0
    for variant in VARIANTS:
        if given.only and not any(word in variant.name for word in given.only):
            continue
        start = time.monotonic()
        if start - begun + longest > given.budget_seconds:
            print(f"no time left for {variant.name}")
            continue
        try:
            result = measured(variant, size, device, given.repeats)
        except Exception as error:  # a card or a torch that cannot do it: the others still can
            print(f"{variant.name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}", flush=True)
            continue
        rows.append({"variant": variant.name, "k": variant.k, **result, "torch": torch.__version__})
        longest = max(longest, time.monotonic() - start)
        print(f"{variant.name}: {result}, ready after {time.monotonic() - start:.0f} s", flush=True)
    gpus = [torch.cuda.get_device_name()] if device.type == "cuda" else None
    publish("attention", rows, given.results, gpus=gpus, commit=given.commit)


if __name__ == "__main__":
    main()
