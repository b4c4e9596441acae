"""How many candidates a second does a scorer answer: a prompt for each, one history for all, or kept item states?

The demo's models, trained for a few steps (weights do not change the time), requests of --candidates candidates each
over histories of the demo's test users, one after another in one process, one thread. `one_prompt` asks for each
candidate by itself, all in one call; `one_history` asks as a server does; `item_states` keeps those of all items
(`dti_isolated` only; made before the clock starts). All modes in turn, in one run, and every answer is compared.
Candidates a second are of processor time; the 50th and 99th percentile of a request are of the clock.

    python -m benchmarks.serving                    # CPU, three minutes
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.lib.harness import dti, parser, prepared, publish, run, sets
from dti_pipeline.paths import Paths
from dti_pipeline.serving.scorer import Scorer

PARADIGMS = ("sliding_window", "dti", "dti_growing", "dti_isolated")
CANDIDATES = (1, 10, 100)
Asked = dict[str, Any]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES)
    options.add_argument("--requests", type=int, default=30, help="of each size (default: %(default)s)")
    options.add_argument("--paradigms", nargs="+", choices=PARADIGMS, default=PARADIGMS)
    given = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        prepared(home)
        for paradigm in given.paradigms:
            few = sets(["training.epochs=0.05", "training.evaluations=0", "tracking.enabled=false"])
            for stage in ("pack", "train"):
                run(dti(stage, "--paradigm", paradigm, *few), home)
            rows += measured(Paths(home), paradigm, given.candidates, given.requests)
    publish("serving", rows, given)


def measured(paths: Paths, paradigm: str, sizes: tuple[int, ...], count: int) -> list[dict[str, Any]]:
    """Rows of one paradigm's model."""
    plain = Scorer.load(paths.model(paradigm), "cpu")
    modes: dict[str, Callable[[Asked], list[float]]] = {
        "one_prompt": lambda asked: [one for (one,) in plain.score([*apart(asked)])],
        "one_history": lambda asked: plain.score([asked])[0],
    }
    if plain.model.paradigm.items_stand_alone:
        kept = Scorer.load(paths.model(paradigm), "cpu", cache_items=True)
        kept.score([{"history": [], "candidates": [{"item_id": item} for item in kept.titles]}])
        modes["item_states"] = lambda asked: kept.score([asked])[0]
    rows = []
    for size in sizes:
        asked = requests(paths, size, count, list(plain.titles))
        seconds: dict[str, list[float]] = {mode: [] for mode in modes}
        processor = dict.fromkeys(modes, 0.0)
        warm = asked[:2]
        for number, one in enumerate([*warm, *asked]):
            answers = []
            for mode, answer in modes.items():
                begun, worked = time.perf_counter(), time.process_time()
                answers.append(answer(one))
                if number >= len(warm):
                    seconds[mode].append(time.perf_counter() - begun)
                    processor[mode] += time.process_time() - worked
            for other in answers[1:]:
                np.testing.assert_allclose(other, answers[0], rtol=0, atol=1e-5)
        pace = {mode: size * count / taken for mode, taken in processor.items()}
        for mode, taken in seconds.items():
            p50, p99 = (round(1000 * float(np.quantile(taken, q)), 2) for q in (0.5, 0.99))
            facts = {"model": "demo", "paradigm": paradigm, "candidates": size, "mode": mode}
            facts |= {"candidates_per_second": round(pace[mode], 1), "p50_ms": p50, "p99_ms": p99}
            rows.append(facts | {"speedup": round(pace[mode] / pace["one_prompt"], 2)})
            print(*rows[-1].values(), flush=True)
    return rows


def apart(asked: Asked) -> Iterator[Asked]:
    """A request for each candidate."""
    return ({**asked, "candidates": [candidate]} for candidate in asked["candidates"])


def requests(paths: Paths, candidates: int, count: int, items: list[str]) -> list[Asked]:
    """Whole histories of test users, and items drawn for them."""
    log = pq.read_table(paths.events / "interactions.parquet").to_pydict()
    draw = np.random.default_rng(3)
    test = [row for row, split in enumerate(log["split"]) if split == "test" and log["position"][row] >= 20]
    made = []
    for row in draw.choice(test, count):
        history = range(row - log["position"][row], row)
        entries = [{"item_id": log["item_id"][r], "label": log["label"][r]} for r in history]
        chosen = draw.choice(items, candidates)
        made.append({"history": entries, "candidates": [{"item_id": str(item)} for item in chosen]})
    return made


if __name__ == "__main__":
    main()
