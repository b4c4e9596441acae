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
from pathlib import Path

import torch
from harness import ROOT, alternate, parser, prepared, publish
from torch.nn.functional import binary_cross_entropy_with_logits

from dti_pipeline import config
from dti_pipeline.modeling.ctr_model import CTRModel
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import PARADIGMS, Paths
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.steps import Steps


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=5, help="of each paradigm, after one that is not counted")
    options.add_argument("--targets-per-step", type=int, default=512)
    options.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    settings = config.load(ROOT / "params.yaml", arguments.settings)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        prepared(Path(scratch), PARADIGMS, arguments.settings)
        sides = {name: Side(settings, Paths(Path(scratch)), name, arguments.targets_per_step) for name in PARADIGMS}
        seconds = alternate({name: side.step for name, side in sides.items()}, arguments.steps)
    rate = {name: side.targets / statistics.median(seconds[name]) for name, side in sides.items()}
    rows = [
        {
            "paradigm": name,
            "k": 1 if name == "sliding_window" else settings.packing.targets,
            "n": settings.packing.context,
            "tokens_per_target": round(side.tokens / side.targets, 2),
            "targets_per_step": side.targets,
            "targets_per_second": round(rate[name], 1),
            "tokens_per_second": round(rate[name] * side.tokens / side.targets),
            "speedup": round(rate[name] / rate["sliding_window"], 2),
            "fewer_tokens": round(
                sides["sliding_window"].tokens / sides["sliding_window"].targets / (side.tokens / side.targets), 2
            ),
        }
        for name, side in sides.items()
    ]
    publish("train_step_cpu", rows, arguments.results)


class Side:
    """One paradigm in training. ``targets`` and ``tokens`` are a step's, on average."""

    def __init__(self, settings: config.Config, paths: Paths, paradigm: str, targets_per_step: int) -> None:
        store = TokenStore.open(paths.tokens)
        rows = Rows.open(store, paths.shards(paradigm), "train")
        facts = store.manifest.report
        torch.manual_seed(settings.training.seed)
        self._model = CTRModel(
            settings.model, paradigm, settings.packing.context, facts["vocabulary"], rows.row_length, store.special
        ).train()
        self._optimizer = optimizer_for(self._model, settings.training)
        self._clip = settings.training.max_gradient_norm
        self._loader = Loader(
            rows,
            Steps(rows.targets(), targets_per_step, epochs=1, seed=0),
            settings.training.tokens_per_batch,
            torch.device("cpu"),
        )
        work = [self._loader.work(number) for number in range(min(8, self._loader.steps.count))]
        self.targets = statistics.mean(one.step.targets for one in work)
        self.tokens = statistics.mean(one.tokens for one in work)
        self._numbers = itertools.cycle(range(len(work)))

    def step(self) -> None:
        """The next step, assembly included."""
        work = self._loader.work(next(self._numbers))
        for batch in work.passes:
            loss = binary_cross_entropy_with_logits(self._model(batch), batch.label, reduction="sum")
            (loss / work.step.targets).backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
