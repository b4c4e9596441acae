"""How fast are histories cut and packed, and how full are the rows?

`prompts.cut` and `best_fit.pack` on a generated log in MovieLens-1M's shape, one thread, medians of CPU time. Beside
them first fit, as a loop over prompts in the order they come: the usual packer, on a sample since it is quadratic; best
fit is run on the same sample, so that their rows compare.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.lib.harness import parser, publish, token_store
from benchmarks.lib.timing import median_seconds
from dti_pipeline.packing import best_fit, prompts
from dti_pipeline.packing.store import TokenStore

CONTEXT, MIN_HISTORY = 20, 5
SAMPLE = 5_000  # prompts that first fit is given
PLANS = (("sliding_window", 1), ("dti k=50", 50), ("dti k=all", None))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--interactions", type=int, default=1_000_000)
    given = options.parse_args()
    store = token_store(given.interactions // 165, given.interactions)
    rows = [measure(name, k, row_length, store) for name, k in PLANS for row_length in (1024, 8192)]
    publish("packing", rows, given)


def measure(name: str, k: int | None, row_length: int, store: TokenStore) -> dict[str, Any]:
    def cut() -> prompts.Prompts:
        is_target = store.request >= MIN_HISTORY
        return prompts.cut(is_target, store.position, store.seen, store.lengths(), CONTEXT, k, row_length)[0]

    lengths = cut().length
    cut_seconds = median_seconds(cut, 3)
    pack_seconds = median_seconds(lambda: best_fit.pack(lengths, row_length, seed=7), 3)
    sample = np.random.default_rng(0).permutation(lengths)[:SAMPLE]
    first_fit_seconds = median_seconds(lambda: first_fit(sample, row_length), 1)
    return {
        "plan": name,
        "row_length": row_length,
        "prompts": len(lengths),
        "prompts_per_second": round(len(lengths) / (cut_seconds + pack_seconds)),
        "cut_seconds": round(cut_seconds, 4),
        "pack_seconds": round(pack_seconds, 4),
        "padding_share": padding(lengths, best_fit.pack(lengths, row_length, seed=7).rows, row_length),
        "sample_padding_best_fit": padding(sample, best_fit.pack(sample, row_length, seed=7).rows, row_length),
        "sample_padding_first_fit": padding(sample, first_fit(sample, row_length), row_length),
        "first_fit_prompts_per_second": round(len(sample) / first_fit_seconds),
    }


def first_fit(lengths: NDArray[np.int64], row_length: int) -> int:
    """Rows that first fit needs: each prompt goes into the first row with room."""
    room: list[int] = []
    for length in lengths.tolist():
        for row, left in enumerate(room):
            if left >= length:
                room[row] -= length
                break
        else:
            room.append(row_length - length)
    return len(room)


def padding(lengths: NDArray[np.int64], rows: int, row_length: int) -> float:
    return round(1 - int(lengths.sum()) / (rows * row_length), 5)


if __name__ == "__main__":
    main()
