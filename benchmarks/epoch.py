"""How long is an epoch of a small model that starts from nothing, from row plans to weights?

The study's model for MovieLens-1M (128 wide, 3 layers, n = 20) through the training's own loop: loader, copies,
forward, backward, optimizer, and whatever waits for what. Wall clock, after a warm-up that is not counted. Each side
takes the best of several sizes of a forward pass, as what suits one row plan does not suit another; all have the same
number of targets a step. The log is generated in MovieLens-1M's shape; --home FOLDER measures one that `dti tokenize`
has made.

    python benchmarks/epoch.py                  # one GPU, about two minutes
    python benchmarks/epoch.py --tiny           # the same code on a CPU, to test it
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from harness import parser, publish, token_store

from dti_pipeline.config import Config, from_plain
from dti_pipeline.modeling.ctr_model import CTRModel
from dti_pipeline.packing.pack import plan_rows
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.steps import Steps

SIDES: tuple[tuple[str, int | str], ...] = (("sliding_window", 1), ("dti", 50), ("dti", "all"))
SETTINGS = {
    "split": {"rule": "user_order"},
    "packing": {"context": 20, "row_length": 8192},
    "model": {"hidden_size": 128, "intermediate_size": 256, "layers": 3, "dropout": 0.1},
    "training": {"dtype": "bfloat16", "targets_per_step": 512, "learning_rate": 4e-3, "evaluations": 0},
}
WARM_UP_STEPS = 8


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--home", type=Path, help="a project home with tokens; default: a generated log")
    options.add_argument("--seconds", type=float, default=4.0, help="of each trial (default: %(default)s)")
    options.add_argument("--sizes", type=int, nargs="+", default=[16384, 32768], help="tokens of a pass, to try")
    options.add_argument("--only", nargs="+", metavar="K", help="sides of these paradigms or k")
    options.add_argument("--preparation", action="store_true", help="compile what is done once a batch, too")
    options.add_argument("--budget-seconds", type=float, default=float("inf"), help="begin no trial beyond it")
    options.add_argument("--tiny", action="store_true", help="a small log on the CPU")
    arguments = options.parse_args()
    settings = from_plain(Config, SETTINGS)
    if arguments.tiny:
        settings = replace(
            settings,
            packing=replace(settings.packing, row_length=512),
            model=replace(settings.model, hidden_size=16, heads=2, kv_heads=2, intermediate_size=24, layers=1),
            training=replace(settings.training, device="cpu", dtype="float32", targets_per_step=64),
        )
        arguments.sizes = [512, 1024]
    store = (
        TokenStore.open(Paths(arguments.home.resolve()).tokens)
        if arguments.home
        else token_store(*((40, 4000) if arguments.tiny else (6060, 1_000_000)))
    )
    cpu = arguments.tiny or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16")
    best: dict[tuple[str, int | str], dict[str, Any]] = {}
    begun, longest = time.monotonic(), 0.0
    for side, size in product(SIDES, arguments.sizes):
        if arguments.only and not {side[0], str(side[1])} & set(arguments.only):
            continue
        start = time.monotonic()
        if start - begun + longest > arguments.budget_seconds:
            print(f"no time left for {side} at {size:,} tokens a pass")
            continue
        row = trial(settings, store, side, size, arguments.seconds, accelerator, arguments.preparation)
        best[side] = max(best.get(side, row), row, key=lambda one: one["targets_per_second"])
        longest = max(longest, time.monotonic() - start)
        print(f"{side} at {size:,} tokens a pass: {row['targets_per_second']:,.0f} targets/s", flush=True)
    base = best.get(SIDES[0])
    for row in best.values():
        row["speedup"] = round(row["targets_per_second"] / base["targets_per_second"], 2) if base else None
        row["fewer_tokens"] = round(base["tokens_per_target"] / row["tokens_per_target"], 2) if base else None
    gpus = None if cpu else [torch.cuda.get_device_name()]
    name = "epoch" if arguments.home is None else f"epoch_{arguments.home.resolve().name}"
    publish(name, list(best.values()), arguments.results, gpus=gpus, commit=arguments.commit)


def trial(
    settings: Config,
    store: TokenStore,
    side: tuple[str, int | str],
    size: int,
    seconds: float,
    accelerator: Accelerator,
    preparation: bool = False,
) -> dict[str, Any]:
    """Train for so many seconds, with passes of ``size`` tokens."""
    paradigm, k = side
    settings = replace(settings, packing=replace(settings.packing, targets=50 if k == 1 else k))
    training = replace(settings.training, tokens_per_batch=size, checkpoint_seconds=10**9)
    plan, cut, row = plan_rows(settings, store, paradigm, "train")
    bounds = np.searchsorted(row, np.arange(plan["rows"] + 1))
    rows = Rows(store, settings.packing.row_length, cut.start, cut.first_target, cut.stop, bounds)
    steps = Steps(rows.targets(), training.targets_per_step, 1000, training.seed)
    torch.manual_seed(training.seed)
    facts = store.manifest.report
    model = CTRModel(
        settings.model,
        paradigm,
        settings.packing.context,
        facts.get("vocabulary", 4096),
        rows.row_length,
        store.special,
    ).to(accelerator.device)
    optimizer = optimizer_for(model, training)
    if accelerator.device.type == "cuda":
        model.compile_layers(preparation)
    prepared, optimizer = accelerator.prepare(model, optimizer)

    def run(first: int, stop_after: Any) -> Progress:
        progress = Progress(step=first)
        Trainer(
            model=prepared,
            optimizer=optimizer,
            accelerator=accelerator,
            config=training,
            loader=Loader(rows, steps, size, accelerator.device),
            progress=progress,
            emit=lambda event: None,
            evaluate=dict,
            checkpoint=lambda: None,
        ).run(stop_after)
        return progress

    warm = run(0, after_steps(WARM_UP_STEPS))
    done = run(warm.step, after_seconds(seconds))
    targets = sum(steps[number].targets for number in range(warm.step, done.step))
    rate = targets / done.train_seconds
    return {
        "paradigm": paradigm,
        "k": k,
        "n": settings.packing.context,
        "targets_per_second": round(rate, 1),
        "tokens_per_second": round(done.tokens_seen / done.train_seconds),
        "tokens_per_target": plan["tokens_per_target"],
        "epoch_seconds": round(plan["targets"] / rate, 1),
        "padding_share": plan["padding_share"],
        "tokens_per_batch": size,
        "targets_per_step": training.targets_per_step,
        "counted_steps": done.step - warm.step,
    }


def after_steps(count: int) -> Any:
    asked = iter(range(count))
    return lambda: next(asked, None) is None


def after_seconds(seconds: float) -> Any:
    begun: list[float] = []  # at the first step, when everything is loaded and compiled

    def over() -> bool:
        begun.append(time.monotonic())
        return begun[-1] - begun[0] > seconds

    return over


if __name__ == "__main__":
    main()
