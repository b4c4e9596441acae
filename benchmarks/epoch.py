"""How long is an epoch of a small model that starts from nothing, from row plans to weights?

The study's model for MovieLens-1M (128 wide, 3 layers, n = 20) through the training's own loop: loader, copies,
forward, backward, optimizer, and every wait between them. Wall clock, after a warm-up that is not counted. Each side
takes the best of several sizes of a micro-batch, as one that suits one row plan need not suit another; all have the
same number of targets a step. A step of few targets is little work for a GPU, least for DTI: hence several numbers.
The log is generated in MovieLens-1M's shape; --home FOLDER measures one that `dti tokenize` has made.

    python -m benchmarks.epoch                  # one GPU, about two minutes
    python -m benchmarks.epoch --tiny           # the same code on a CPU, to test it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.lib.harness import log_of, parser, publish
from benchmarks.lib.timing import affordable, gpus
from benchmarks.lib.training import model_of, ready, rows_of, trainer_of
from dti_pipeline.config import Config, from_plain
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import named
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.steps import Steps

SIDES: tuple[tuple[str, int | str], ...] = (("sliding_window", 1), ("dti", 50), ("dti", "all"))
SETTINGS: dict[str, Any] = {
    "split": {"rule": "user_order"},
    "packing": {"context": 20, "row_length": 5120},
    "model": {"hidden_size": 128, "intermediate_size": 256, "layers": 3, "dropout": 0.1},
    "training": {"dtype": "bfloat16", "learning_rate": 4e-3, "evaluations": 0, "checkpoint_seconds": 10**9,
                 "epochs": 100},  # more than a trial gets through
}  # fmt: skip
TINY: dict[str, Any] = {
    "packing": {"context": 20, "row_length": 512},
    "model": {"hidden_size": 16, "heads": 2, "kv_heads": 2, "intermediate_size": 24, "layers": 1, "dropout": 0.1},
    "training": SETTINGS["training"] | {"device": "cpu", "dtype": "float32"},
}
WARM_UP_STEPS = 8


@dataclass(frozen=True)
class Trial:
    targets_per_step: int
    side: tuple[str, int | str]
    tokens: int  # of a micro-batch at most


def main() -> None:
    options = parser(__doc__, gpu=True, home=True)
    options.add_argument("--seconds", type=float, default=4.0, help="of each trial (default: %(default)s)")
    options.add_argument("--targets-per-step", type=int, nargs="+", default=[512, 2048, 8192])
    options.add_argument("--sizes", type=int, nargs="+", default=[32768, 131072], help="of a pass at most, tokens")
    options.add_argument("--only", nargs="+", metavar="K", help="sides of these paradigms or k")
    options.add_argument("--no-cuda-graph", action="store_true", help="launch a pass kernel by kernel")
    given = options.parse_args()
    settings = from_plain(Config, SETTINGS | TINY if given.tiny else SETTINGS)
    settings = replace(settings, training=replace(settings.training, cuda_graph=not given.no_cuda_graph))
    if given.tiny:
        given.sizes, given.targets_per_step = [512, 1024], [64]
    store = log_of(given.home, *((40, 4000) if given.tiny else (6060, 1_000_000)))
    cpu = given.tiny or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16")
    best: dict[tuple[Any, ...], dict[str, Any]] = {}

    def wanted() -> Iterator[Trial]:
        for combination in product(given.targets_per_step, SIDES, sorted(given.sizes)):
            trial = Trial(*combination)
            asked = given.only is None or {trial.side[0], str(trial.side[1])} & set(given.only)
            whole = best.get((trial.targets_per_step, *trial.side), {}).get("passes_per_step") == 1
            if asked and not whole:  # else there was room for a whole step already
                yield trial

    for trial in affordable(wanted(), given.budget_seconds):
        row = measured(trial, settings, store, given.seconds, accelerator)
        key = (trial.targets_per_step, *trial.side)
        best[key] = max(best.get(key, row), row, key=lambda one: one["targets_per_second"])
        print(f"{row['tokens_per_pass']:,} tokens a pass: {row['targets_per_second']:,.0f} targets/s", flush=True)
    for row in best.values():
        base = best.get((row["targets_per_step"], *SIDES[0]))
        row["speedup"] = round(row["targets_per_second"] / base["targets_per_second"], 2) if base else None
        row["fewer_tokens"] = round(base["tokens_per_target"] / row["tokens_per_target"], 2) if base else None
    publish("epoch", list(best.values()), given, gpus=gpus(accelerator.device))


def measured(
    trial: Trial, settings: Config, store: TokenStore, seconds: float, accelerator: Accelerator
) -> dict[str, Any]:
    """Train for some seconds."""
    paradigm, k = trial.side
    settings = replace(settings, packing=replace(settings.packing, targets=50 if k == 1 else k))
    training = replace(settings.training, targets_per_step=trial.targets_per_step, tokens_per_batch=trial.tokens)
    rows, plan = rows_of(settings, store, named(paradigm))
    torch.manual_seed(training.seed)
    model = model_of(settings, store, named(paradigm))
    optimizer = ready(model, accelerator.device, training)
    warming = trainer_of(model, optimizer, accelerator, training, rows)
    warming.run(after_steps(WARM_UP_STEPS))
    warm = warming.progress.step
    trainer = replace(warming, progress=Progress(step=warm))
    trainer.run(after_seconds(seconds))
    done, loader = trainer.progress, trainer.loader
    steps: Steps = loader.steps
    rate = sum(steps[number].targets for number in range(warm, done.step)) / done.train_seconds
    return {
        "paradigm": paradigm,
        "k": k,
        "n": settings.packing.context,
        "targets_per_second": round(rate, 1),
        "tokens_per_second": round(done.tokens_seen / done.train_seconds),
        "tokens_per_target": plan.tokens_per_target,
        "epoch_seconds": round(plan.targets / rate, 1),
        "padding_share": plan.padding_share,
        "tokens_per_batch": training.tokens_per_batch,
        "tokens_per_pass": loader.rows_per_batch * rows.row_length,
        "passes_per_step": -(-steps.most_rows // loader.rows_per_batch),
        "targets_per_step": training.targets_per_step,
        "cuda_graph": training.cuda_graph,
        "counted_steps": done.step - warm,
    }


def after_steps(count: int) -> Callable[[], bool]:
    asked = iter(range(count))
    return lambda: next(asked, None) is None


def after_seconds(seconds: float) -> Callable[[], bool]:
    begun: list[float] = []  # at the first step, when everything is loaded and compiled

    def over() -> bool:
        begun.append(time.monotonic())
        return begun[-1] - begun[0] > seconds

    return over


if __name__ == "__main__":
    main()
