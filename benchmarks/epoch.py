"""How long is an epoch of a small model that starts from nothing, from row plans to weights?

The study's model for MovieLens-1M (128 wide, 3 layers, n = 20) through the training's own loop: loader, copies,
forward, backward, optimizer, and whatever waits for what. Wall clock, after a warm-up that is not counted. Each side
takes the best of several sizes of a forward pass, as what suits one row plan does not suit another; all have the same
number of targets a step. A step of few targets is little work for a GPU, least for DTI: hence several numbers of them.
The log is generated in MovieLens-1M's shape; --home FOLDER measures one that `dti tokenize` has made.

    python benchmarks/epoch.py                  # one GPU, about two minutes
    python benchmarks/epoch.py --tiny           # the same code on a CPU, to test it
"""

from __future__ import annotations

import time
from argparse import Namespace
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from bare import bare_trainer
from harness import named, parser, publish, token_store

from dti_pipeline.config import Config, from_plain
from dti_pipeline.modeling.ctr_model import CTRModel
from dti_pipeline.packing.pack import plan_rows
from dti_pipeline.packing.reader import Rows, bounds
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.steps import Steps

SIDES: tuple[tuple[str, int | str], ...] = (("sliding_window", 1), ("dti", 50), ("dti", "all"))
SETTINGS = {
    "split": {"rule": "user_order"},
    "packing": {"context": 20, "row_length": 5120},
    "model": {"hidden_size": 128, "intermediate_size": 256, "layers": 3, "dropout": 0.1},
    "training": {"dtype": "bfloat16", "learning_rate": 4e-3, "evaluations": 0},
}
WARM_UP_STEPS = 8
EPOCHS = 100  # more than a trial gets through


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--home", type=Path, help="a project home with tokens; default: a generated log")
    options.add_argument("--seconds", type=float, default=4.0, help="of each trial (default: %(default)s)")
    options.add_argument("--targets-per-step", type=int, nargs="+", default=[512, 2048, 8192])
    options.add_argument("--sizes", type=int, nargs="+", default=[32768, 131072], help="of a pass at most, tokens")
    options.add_argument("--only", nargs="+", metavar="K", help="sides of these paradigms or k")
    options.add_argument("--no-cuda-graph", action="store_true", help="launch a pass kernel by kernel")
    options.add_argument("--budget-seconds", type=float, default=float("inf"), help="begin no trial beyond it")
    options.add_argument("--tiny", action="store_true", help="a small log on the CPU")
    arguments = options.parse_args()
    settings = from_plain(Config, SETTINGS)
    if arguments.tiny:
        settings = replace(
            settings,
            packing=replace(settings.packing, row_length=512),
            model=replace(settings.model, hidden_size=16, heads=2, kv_heads=2, intermediate_size=24, layers=1),
            training=replace(settings.training, device="cpu", dtype="float32"),
        )
        arguments.sizes, arguments.targets_per_step = [512, 1024], [64]
    store = (
        TokenStore.open(Paths(arguments.home.resolve()).tokens)
        if arguments.home
        else token_store(*((40, 4000) if arguments.tiny else (6060, 1_000_000)))
    )
    cpu = arguments.tiny or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, mixed_precision="no" if cpu else "bf16")
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    begun, longest = time.monotonic(), 0.0
    for targets, side, size in product(arguments.targets_per_step, SIDES, sorted(arguments.sizes)):
        if arguments.only and not {side[0], str(side[1])} & set(arguments.only):
            continue
        key = (targets, *side)
        if key in best and best[key]["passes_per_step"] == 1:
            continue  # there was room for a whole step already
        start = time.monotonic()
        if start - begun + longest > arguments.budget_seconds:
            print(f"no time left for {side}, {targets} targets a step, {size:,} tokens a pass")
            continue
        training = replace(
            settings.training,
            targets_per_step=targets,
            tokens_per_batch=size,
            cuda_graph=not arguments.no_cuda_graph,
        )
        row = trial(replace(settings, training=training), store, side, arguments, accelerator)
        best[key] = max(best.get(key, row), row, key=lambda one: one["targets_per_second"])
        longest = max(longest, time.monotonic() - start)
        print(f"{side}, {targets} targets a step, {row['tokens_per_pass']:,} tokens a pass:"
              f" {row['targets_per_second']:,.0f} targets/s", flush=True)  # fmt: skip
    for row in best.values():
        base = best.get((row["targets_per_step"], *SIDES[0]))
        row["speedup"] = round(row["targets_per_second"] / base["targets_per_second"], 2) if base else None
        row["fewer_tokens"] = round(base["tokens_per_target"] / row["tokens_per_target"], 2) if base else None
    gpus = None if cpu else [torch.cuda.get_device_name()]
    publish(named("epoch", arguments.home), list(best.values()), arguments.results, gpus=gpus, commit=arguments.commit)


def trial(
    settings: Config, store: TokenStore, side: tuple[str, int | str], arguments: Namespace, accelerator: Accelerator
) -> dict[str, Any]:
    """Train for some seconds."""
    paradigm, k = side
    settings = replace(settings, packing=replace(settings.packing, targets=50 if k == 1 else k))
    training = replace(settings.training, checkpoint_seconds=10**9)
    plan, cut, row = plan_rows(settings, store, paradigm, "train")
    rows = Rows(store, settings.packing.row_length, cut.start, cut.first_target, cut.stop, bounds(row))
    steps = Steps(rows.targets(), training.targets_per_step, EPOCHS, training.seed)
    loader = Loader(rows, steps, training.tokens_per_batch, accelerator.device)
    torch.manual_seed(training.seed)
    model = CTRModel(
        settings.model,
        paradigm,
        settings.packing.context,
        store.vocabulary or 4096,
        rows.row_length,
        store.special,
    ).to(accelerator.device)
    optimizer = optimizer_for(model, training)
    if accelerator.device.type == "cuda":
        model.compile_layers()
    prepared = accelerator.prepare(model)

    def run(first: int, stop_after: Any) -> Progress:
        progress = Progress(step=first)
        bare_trainer(prepared, optimizer, accelerator, training, loader, progress).run(stop_after)
        return progress

    warm = run(0, after_steps(WARM_UP_STEPS))
    done = run(warm.step, after_seconds(arguments.seconds))
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
        "tokens_per_batch": training.tokens_per_batch,
        "tokens_per_pass": loader.size * rows.row_length,
        "passes_per_step": -(-steps.most_rows // loader.size),
        "targets_per_step": training.targets_per_step,
        "cuda_graph": training.cuda_graph,
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
