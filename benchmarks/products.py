"""How fast are a layer's matrix products, by the number of tokens in a pass?

cuBLAS chooses a kernel by the shape of a product, and not always the fastest one: a few tokens more or less in a pass
change the speed of all of a large model's products by several percent, of the frozen weights that LoRA leaves alone
most of its step. Forward and towards the input, bfloat16, an 8B-parameter Llama's seven matrices of a layer; medians of
turns over all sizes. Which numbers of tokens does a sliding window's batch of prompts have, and which should rows of
a packed batch have?

    python benchmarks/products.py                   # one GPU, 20 seconds
    python benchmarks/products.py --tiny            # on a CPU; its figures say nothing
"""

from __future__ import annotations

import statistics
from itertools import pairwise

import torch
from harness import parser, publish
from torch import Tensor
from torch.nn.functional import linear

from dti_pipeline.planning.shape import SHAPES, Shape

#: Whole prompts of 631 tokens, as a dense batch has them; multiples of 64 and 128, and what is around them.
SIZES = (
    9465, 9472, 10727, 10736, 10744, 10750, 10752, 10760, 10768, 10816, 10880, 12900, 12904, 12928, 16384, 16400, 16406,
    17200, 17208, 20823, 21440, 21454, 21456, 21480, 21500, 21504, 21512, 21520,
)  # fmt: skip
TURNS, REPEATS = 3, 4


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="tokens of a pass")
    options.add_argument("--tiny", action="store_true", help="a sixty-fourth of everything, on a CPU")
    arguments = options.parse_args()
    device, shapes, sizes = torch.device("cuda"), matrices(SHAPES["llama-3.1-8b"]), arguments.sizes
    if arguments.tiny:
        device, shapes = torch.device("cpu"), [(i // 64, o // 64) for i, o in shapes]
        sizes = [size // 64 for size in sizes]
    torch.manual_seed(0)
    weights = [torch.randn(o, i, device=device).mul(0.02).bfloat16() for i, o in shapes]
    numbers = torch.randn(max(sizes) * max(map(max, shapes)), device=device).bfloat16()
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(TURNS):
        for size, found in times.items():
            found.append(milliseconds(numbers, weights, size))
    flop = sum(4 * i * o for i, o in shapes)
    rows = [
        {
            "tokens": size,
            "divided_by": max(power for power in (1, 2, 4, 8, 16, 32, 64, 128) if size % power == 0),
            "milliseconds": round(statistics.median(found), 3),
            "us_per_1000_tokens": round(statistics.median(found) / size * 1e6, 1),
            "tflops": round(flop * size / statistics.median(found) / 1e9, 1),
        }
        for size, found in sorted(times.items())
    ]
    gpus = [torch.cuda.get_device_name()] if device.type == "cuda" else None
    publish("products", rows, arguments.results, gpus=gpus, commit=arguments.commit)


def matrices(shape: Shape) -> list[tuple[int, int]]:
    """(input, output) of q, k, v, o, gate, up, down."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    into, back = (shape.hidden, shape.intermediate), (shape.intermediate, shape.hidden)
    return [(shape.hidden, queries), *[(shape.hidden, keys)] * 2, (queries, shape.hidden), into, into, back]


def milliseconds(numbers: Tensor, weights: list[Tensor], tokens: int) -> float:
    """Of one layer's products over ``tokens`` rows, the first turn of which is not counted."""

    def take() -> None:
        for weight in weights:
            wide, narrow = weight.shape
            linear(numbers[: tokens * narrow].view(tokens, narrow), weight)
            numbers[: tokens * wide].view(tokens, wide) @ weight

    take()
    if not numbers.is_cuda:
        return float("nan")
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        take()
        mark.record()
    marks[-1].synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairwise(marks))


if __name__ == "__main__":
    main()
