"""How many candidates a second does a scorer answer: a prompt for each, one history for all, or kept states?

The demo's models, trained for a few steps (weights do not change the time), requests of --candidates candidates each
over histories of the demo's test users, one after another in one process, one thread. `one_prompt` asks for each
candidate by itself, all in one call; `one_history` asks as a server does; `item_states` keeps those of all items
(`dti_isolated`; made before the clock starts); `user_states` keeps that of the user, who has done one thing since the
last request (`dti` and `dti_growing`). All modes in turn, in one run. Every answer is compared with that of one prompt,
but those of `user_states`, which are of another prompt: tests compare them. Candidates a second are of processor time;
the 50th and 99th percentile of a request are of the clock. `state_kib`: of one user's state, on average.

With --shape a model of that shape with random weights, on --device, by the clock on a GPU; it needs neither a log nor a
network, nor any library but those that score: torch, transformers, peft, numpy, numba, pyarrow.

    python -m benchmarks.serving                                                    # CPU, three minutes
    python -m benchmarks.serving --shape smollm2-135m --device cuda                 # one GPU, minutes; in bfloat16
    python -m benchmarks.serving --shape smollm2-135m --candidates 1 10 --requests 3 --paradigms dti dti_isolated
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.lib import llama, served
from benchmarks.lib.harness import dti, parser, prepared, publish, run, sets
from dti_pipeline.paths import Paths
from dti_pipeline.serving.item_states import ItemStates
from dti_pipeline.serving.scorer import Scorer

PARADIGMS = ("sliding_window", "dti", "dti_growing", "dti_isolated")
CANDIDATES = (1, 10, 100)
#: Of a batch.
TOKENS = {"cpu": 8192, "cuda": 32768}
Asked = dict[str, Any]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES)
    options.add_argument("--requests", type=int, default=30, help="of each size (default: %(default)s)")
    options.add_argument("--paradigms", nargs="+", choices=PARADIGMS, default=PARADIGMS)
    options.add_argument("--shape", help="of a model with random weights: smollm2-135m, say, or tiny")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of --shape (default: %(default)s)")
    given = options.parse_args()
    torch.set_num_threads(1)
    rows = []
    if given.shape is not None:
        device = torch.device(given.device)
        shape = llama.shape_named(given.shape)
        name = shape.name if device.type == "cpu" else f"{shape.name}, bfloat16"
        for paradigm in given.paradigms:
            scorer = served.scorer(shape, paradigm, device, TOKENS[device.type])
            asked = {size: served.requests(size, given.requests) for size in given.candidates}
            rows += measured(scorer, asked, name)
            del scorer
    else:
        with tempfile.TemporaryDirectory() as scratch:
            home = Path(scratch)
            prepared(home)
            for paradigm in given.paradigms:
                few = sets(["training.epochs=0.05", "training.evaluations=0", "tracking.enabled=false"])
                for stage in ("pack", "train"):
                    run(dti(stage, "--paradigm", paradigm, *few), home)
                scorer = Scorer.load(Paths(home).model(paradigm), "cpu")
                items = list(scorer.titles)
                asked = {size: requests(Paths(home), size, given.requests, items) for size in given.candidates}
                rows += measured(scorer, asked, "demo")
    device_name = [torch.cuda.get_device_name()] if given.device == "cuda" else []
    publish("serving", rows, given, gpus=device_name, case=("model",))


def measured(scorer: Scorer, of_size: dict[int, list[Asked]], model: str) -> list[dict[str, Any]]:
    """Rows of one model."""
    modes: dict[str, Callable[[Asked], list[float]]] = {
        "one_prompt": lambda asked: [one for (one,) in scorer.score([*apart(asked)])],
        "one_history": lambda asked: scorer.score([asked])[0],
    }
    paradigm = scorer.model.paradigm
    if paradigm.items_stand_alone:
        kept = replace(scorer, states=ItemStates(scorer.model, scorer.device, scorer.autocast))
        items = [*scorer.titles]
        for first in range(0, len(items), 1000):
            every = [{"item_id": item} for item in items[first : first + 1000]]
            kept.score([{"history": [], "candidates": every}])
        modes["item_states"] = lambda asked: kept.score([asked])[0]
    elif paradigm.streams:
        users = scorer.with_users("a model", 50, 1 << 34)
        modes["user_states"] = lambda asked: users.score([asked])[0]
    on_gpu, rows = scorer.device.type == "cuda", []
    for size, asked in of_size.items():
        seconds: dict[str, list[float]] = {mode: [] for mode in modes}
        work = dict.fromkeys(modes, 0.0)
        warm = asked[:2]
        for number, one in enumerate([*warm, *asked]):
            answers = {}
            for mode, answer in modes.items():
                wanted = one
                if mode == "user_states":  # all but the last thing was there when the user last asked
                    wanted = one | {"user_id": f"{size} {number}"}
                    users.score([wanted | {"history": one["history"][:-1], "candidates": []}])
                begun, worked = time.perf_counter(), time.process_time()
                answers[mode] = answer(wanted)
                taken, used = time.perf_counter() - begun, time.process_time() - worked
                if number >= len(warm):
                    seconds[mode].append(taken)
                    work[mode] += taken if on_gpu else used
            for mode, other in answers.items():
                if mode != "user_states":
                    tolerance = 0.02 if on_gpu else 1e-5  # bfloat16
                    np.testing.assert_allclose(other, answers["one_prompt"], rtol=0, atol=tolerance)
        pace = {mode: size * len(asked) / taken for mode, taken in work.items()}
        for mode, taken in seconds.items():
            p50, p99 = (round(1000 * float(np.quantile(taken, q)), 2) for q in (0.5, 0.99))
            facts: dict[str, Any] = {"model": model, "paradigm": paradigm.name, "candidates": size, "mode": mode}
            facts |= {"candidates_per_second": round(pace[mode], 1), "p50_ms": p50, "p99_ms": p99}
            facts |= {"speedup": round(pace[mode] / pace["one_prompt"], 2)}
            if mode == "user_states":
                assert users.users is not None
                facts["state_kib"] = round(users.users.bytes / len(users.users.states) / 1024, 1)
            rows.append(facts)
            print(*facts.values(), flush=True)
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
