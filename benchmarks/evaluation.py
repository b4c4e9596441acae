"""How many held-out targets a second are scored, in one prompt a target and in streaming prompts?

The demo's model (untrained: weights do not change the time) over the demo log's test targets. The two forms of each
paradigm are scored in alternation, assembly counted, one thread, medians.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT, alternate, parser, prepared, publish

from dti_pipeline import config
from dti_pipeline.modeling.ctr_model import CTRModel
from dti_pipeline.modeling.scoring import score
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import PARADIGMS, Paths

FORMS = {"sliding_window": "test", "streaming": "test_streaming"}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--threads", type=int, default=1)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = config.load(ROOT / "params.yaml")
    with tempfile.TemporaryDirectory() as scratch:
        paths = Paths(Path(scratch))
        paths.params.write_text((ROOT / "params.yaml").read_text())
        prepared(paths.home, PARADIGMS)
        rows = [row for paradigm in PARADIGMS for row in measure(settings, paths, paradigm, arguments.repeats)]
    publish("evaluation", rows, arguments.results)


def measure(settings: config.Config, paths: Paths, paradigm: str, repeats: int) -> list[dict[str, Any]]:
    store = TokenStore.open(paths.tokens)
    vocabulary = store.manifest.report["vocabulary"]
    plans = {form: Rows.open(store, paths.shards(paradigm), plan) for form, plan in FORMS.items()}
    # A sliding-window model has no streaming mask of its own: as in the evaluation, it is given the paper's.
    masks = {form: "dti" if (paradigm, form) == ("sliding_window", "streaming") else paradigm for form in FORMS}
    model = CTRModel(
        settings.model, paradigm, settings.packing.context, vocabulary, plans["streaming"].row_length, store.special
    ).eval()

    def scored(form: str) -> None:
        model.paradigm = masks[form]
        rows = plans[form]
        score(model, rows, np.arange(len(rows)), settings.training.tokens_per_batch, torch.device("cpu"))

    seconds = alternate({form: lambda form=form: scored(form) for form in FORMS}, repeats)  # type: ignore[misc]
    rates = {form: int(plan.targets().sum()) / statistics.median(seconds[form]) for form, plan in plans.items()}
    return [
        {
            "paradigm": paradigm,
            "form": form,
            "targets": int(plan.targets().sum()),
            "rows": len(plan),
            "targets_per_second": round(rates[form], 1),
            "speedup": round(rates[form] / rates["sliding_window"], 2),
        }
        for form, plan in plans.items()
    ]


if __name__ == "__main__":
    main()
