"""How many more targets a second does a training step learn from, on a CPU?

The demo's model on the demo's log, every paradigm against the sliding window in one process, steps in alternation: the
training's own loader (assembly counted), forward, backward, clipping, AdamW; the same number of targets a step, one
thread, medians of CPU time. Quote the ratio only: seconds are those of one machine. The GPU's table has a script of its
own.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks.lib.harness import ROOT, parser, prepared, publish
from benchmarks.lib.timing import alternate
from benchmarks.lib.training import model_of, ready, rows_of, trainer_of
from dti_pipeline import config
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import BASELINE, PARADIGMS, Paradigm
from dti_pipeline.paths import Paths


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=5, help="of each paradigm, after one that is not counted")
    options.add_argument("--targets-per-step", type=int, default=512)
    options.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    given = options.parse_args()
    torch.set_num_threads(1)
    settings = config.load(ROOT / "params.yaml", given.settings)
    settings = replace(settings, training=replace(settings.training, targets_per_step=given.targets_per_step))
    with tempfile.TemporaryDirectory() as scratch:
        prepared(Path(scratch), given.settings)
        store = TokenStore.open(Paths(Path(scratch)).tokens)
        sides = {paradigm.name: Side(settings, store, paradigm) for paradigm in PARADIGMS}
        seconds = alternate({name: side.step for name, side in sides.items()}, given.steps)
    rate = {name: side.targets / statistics.median(seconds[name]) for name, side in sides.items()}
    tokens = {name: side.tokens / side.targets for name, side in sides.items()}
    rows = [
        {
            "paradigm": name,
            "k": 1 if name == BASELINE.name else settings.packing.targets,
            "n": settings.packing.context,
            "tokens_per_target": round(tokens[name], 2),
            "targets_per_step": side.targets,
            "targets_per_second": round(rate[name], 1),
            "tokens_per_second": round(rate[name] * tokens[name]),
            "speedup": round(rate[name] / rate[BASELINE.name], 2),
            "fewer_tokens": round(tokens[BASELINE.name] / tokens[name], 2),
        }
        for name, side in sides.items()
    ]
    publish("train_step_cpu", rows, given)


class Side:
    """One paradigm in training. ``targets`` and ``tokens`` are a step's, on average."""

    def __init__(self, settings: config.Config, store: TokenStore, paradigm: Paradigm) -> None:
        rows, _ = rows_of(settings, store, paradigm)
        torch.manual_seed(settings.training.seed)
        model = model_of(settings, store, paradigm).train()
        optimizer = ready(model, torch.device("cpu"), settings.training)
        self._trainer = trainer_of(model, optimizer, Accelerator(cpu=True), settings.training, rows)
        self._loader = self._trainer.loader
        work = [self._loader.micro_batches(number) for number in range(min(8, self._loader.steps.count))]
        self.targets = statistics.mean(one.step.targets for one in work)
        self.tokens = statistics.mean(one.tokens for one in work)
        self._numbers = itertools.cycle(range(len(work)))

    def step(self) -> None:
        """The next step, assembly included."""
        self._trainer.runner.gradients(self._loader.micro_batches(next(self._numbers)))
        self._trainer.runner.update(self._trainer.config.learning_rate)


if __name__ == "__main__":
    main()
