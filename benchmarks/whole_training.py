"""How long is a whole training of a pretrained model, from the start of its process to the published folder?

``dti train`` itself on a project home whose log is tokenised and packed: set up, compile, steps, evaluations, publish.
Each paradigm in a process of its own, one after the other, with empty caches of compilers; under --again a second time,
with the caches that the first one left. Neither event database nor tracker is needed. The models are published in
scratch homes, which are removed.

    python -m benchmarks.whole_training --project HOME --params recipes/smollm2-135m.yaml --set training.seed=1
    python -m benchmarks.whole_training --project HOME --tiny           # on a CPU, the model of HOME/params.yaml

``seconds`` are those from the start of the process to the end, with whatever is compiled; ``compilation seconds`` pass
before the first step, and ``first step seconds`` to its end; ``steps seconds`` are the loop's own stopwatch, without
compilation and evaluations; ``evaluation seconds`` count what evaluations compile. Speed-ups are of the steps, of all,
and of all but compilation. AUC is that of validation targets in streaming prompts. A call's rows take the place of
those of the same model, training and log in the file; all others stay.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.lib.harness import parser, publish
from benchmarks.lib.timing import affordable
from dti_pipeline import config
from dti_pipeline.config import Config
from dti_pipeline.paradigms import BASELINE
from dti_pipeline.paths import Paths
from dti_pipeline.training.progress import Evaluated, Event, FirstStep, Stepped
from dti_pipeline.training.report import TrainReport

#: Variables that say where a compiler keeps its code: of the model's, the kernels' and the loader's.
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "NUMBA_CACHE_DIR")
CASE = ("log", "model", "trained", "lora_modules", "epochs", "cache")

#: What of a training speed-ups are given of.
DURATIONS: dict[str, Callable[[dict[str, Any]], float]] = {
    "steps": lambda row: row["steps_seconds"],
    "whole": lambda row: row["seconds"],
    "compiled": lambda row: row["seconds"] - row["compilation_seconds"],
}


class Clock:
    """A listener that notes when things happen, in seconds from the time ``begun``."""

    def __init__(self, begun: float) -> None:
        self._begun = begun
        self.before_steps = self.first_step = self.evaluations = 0.0

    def now(self) -> float:
        return time.time() - self._begun

    def __call__(self, event: Event) -> None:
        if isinstance(event, FirstStep):
            self.first_step = self.now()
        elif isinstance(event, Stepped) and not self.before_steps:
            self.before_steps = self.now() - event.train_seconds
        elif isinstance(event, Evaluated):
            self.evaluations = self.now() - self.before_steps - event.train_seconds


def trained(settings: Config, project: Path, paradigm: str, begun: float) -> dict[str, Any]:
    """Train in this process, which began at that time; a row of the table."""
    clock = Clock(begun)
    from dti_pipeline.training.train import train

    with tempfile.TemporaryDirectory(prefix=f"{paradigm}-") as scratch:
        home = Path(scratch)
        (home / "data").mkdir()
        for name in ("tokens", "shards"):
            (home / "data" / name).symlink_to(project / "data" / name)
        report = train(settings, Paths(home), paradigm, [clock])
        seconds = clock.now()
    return row_of(settings, project.name, report) | {
        "seconds": round(seconds, 1),
        "compilation_seconds": round(report.first_step["compilation"], 1),
        "first_step_seconds": round(clock.first_step, 1),
        "steps_seconds": round(report.train_seconds, 1),
        "evaluation_seconds": round(clock.evaluations, 1),
    }


def row_of(settings: Config, log: str, report: TrainReport) -> dict[str, Any]:
    """What the training's own report says."""
    model, lora = settings.model, settings.model.name_or_path is not None and settings.model.lora.rank > 0
    modules = ",".join(model.lora.target_modules) if lora else ""
    return {
        "log": log,
        "model": Path(model.name_or_path or "from scratch").name,
        "trained": "lora" if lora else "all",
        "lora_modules": "all-linear" if modules.count(",") == 6 else modules,
        "epochs": report.epochs,
        "paradigm": report.paradigm,
        "hardware_used": report.hardware,
        "targets": report.targets,
        "targets_per_second": round(report.targets_per_second),
        "tokens_per_second": round(report.tokens_per_second),
        "tokens_per_target": round(report.tokens_per_target, 2),
        "validation_auc": report.validation_auc and round(report.validation_auc, 4),
        "peak_memory_gib": round(report.peak_memory_gib, 1),
        "cuda_graph": report.execution["cuda_graph"]["on"],
        "fallbacks": len(report.fallbacks),
    }


def main() -> None:
    options = parser(__doc__, gpu=True)
    options.add_argument("--project", type=Path, required=True, metavar="HOME", help="its log is tokenised and packed")
    options.add_argument("--params", type=Path, default=Path("params.yaml"), help="as dti train takes it")
    options.add_argument("--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="of it")
    options.add_argument("--paradigms", nargs="+", default=["sliding_window", "dti"], help="(default: these two)")
    options.add_argument("--again", action="store_true", help="a second time, with full caches of compilers")
    given = options.parse_args()
    project = given.project.resolve()
    settings = config.load(config.find(given.params, project), given.set)
    if given.tiny:
        settings = replace(settings, training=replace(settings.training, device="cpu", dtype="float32"))
    rows: list[dict[str, Any]] = []
    wanted = [(paradigm, cache) for paradigm in given.paradigms for cache in ("empty", "full")[: 1 + given.again]]
    with tempfile.TemporaryDirectory(prefix="cache-") as caches:
        for paradigm, cache in affordable(wanted, given.budget_seconds):
            os.environ |= {name: str(Path(caches) / paradigm / name.lower()) for name in CACHES}  # the process inherits
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                done = alone.submit(trained, settings, project, paradigm, time.time())
                rows.append({"cache": cache, **done.result()})
    if not rows:
        raise SystemExit("there was no time for a training")
    for row in rows:
        base = next((r for r in rows if (r["paradigm"], r["cache"]) == (BASELINE.name, row["cache"])), None)
        for name, seconds in DURATIONS.items():
            row[f"{name}_speedup"] = round(seconds(base) / max(seconds(row), 0.1), 2) if base else None
    hardware = [row.pop("hardware_used") for row in rows]
    publish("whole_training", rows, given, gpus=hardware[:1], case=CASE)


if __name__ == "__main__":
    main()
