"""How many held-out targets a second are scored: one prompt a target, streaming prompts, and from kept item states?

The demo's model (untrained: weights do not change the time) over the demo log's test targets. The forms of each
paradigm are scored in alternation, assembly counted, one thread, medians of CPU time. `one prompt, item states kept`
scores the prompts of the first form (`dti_isolated` only) when the states of all items are there; making them once has
a line of its own.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT, alternate, parser, prepared, publish
from numpy.typing import NDArray

from dti_pipeline import config
from dti_pipeline.modeling.ctr_model import CTRModel
from dti_pipeline.modeling.scoring import score
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import PARADIGMS, Paths
from dti_pipeline.serving.item_states import ItemStates

ONE, STREAMING, KEPT = "one prompt a target", "streaming", "one prompt, item states kept"
FORMS = {ONE: "test", STREAMING: "test_streaming"}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    settings = config.load(ROOT / "params.yaml")
    with tempfile.TemporaryDirectory() as scratch:
        paths = Paths(Path(scratch))
        paths.params.write_text((ROOT / "params.yaml").read_text())
        prepared(paths.home, PARADIGMS)
        rows = [row for paradigm in PARADIGMS for row in measure(settings, paths, paradigm, arguments.repeats)]
    publish("evaluation", rows, arguments.results)


def measure(settings: config.Config, paths: Paths, paradigm: str, repeats: int) -> list[dict[str, Any]]:
    store = TokenStore.open(paths.tokens)
    plans = {form: Rows.open(store, paths.shards(paradigm), plan) for form, plan in FORMS.items()}
    # A sliding-window model has no streaming mask of its own: as in the evaluation, it is given the paper's.
    masks = {form: "dti" if (paradigm, form) == ("sliding_window", STREAMING) else paradigm for form in FORMS}
    model = CTRModel(
        settings.model, paradigm, settings.packing.context, store.vocabulary, plans[STREAMING].row_length, store.special
    ).eval()

    def scored(form: str) -> None:
        model.paradigm = masks[form]
        rows = plans[form]
        score(model, rows, np.arange(len(rows)), settings.training.tokens_per_batch, torch.device("cpu"))

    calls: dict[str, Callable[[], object]] = {form: partial(scored, form) for form in FORMS}
    targets = int(plans[ONE].targets().sum())
    if paradigm == "dti_isolated":
        states = ItemStates(model, torch.device("cpu"))
        states.add(store, settings.training.tokens_per_batch)
        calls[KEPT] = partial(states.score, *_histories(store, plans[ONE]))
        calls["making the states"] = lambda: ItemStates(model, torch.device("cpu")).add(
            store, settings.training.tokens_per_batch
        )
    seconds = {form: statistics.median(times) for form, times in alternate(calls, repeats).items()}
    return [
        {
            "paradigm": paradigm,
            "form": form,
            "targets": targets if form in (*FORMS, KEPT) else None,
            "seconds": round(taken, 3),
            "targets_per_second": round(targets / taken, 1) if form in (*FORMS, KEPT) else None,
            "share_of_first_form": round(taken / seconds[ONE], 4),
        }
        for form, taken in seconds.items()
    ]


def _histories(store: TokenStore, plan: Rows) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """The prompts of a plan, one after another: text and label of each interaction, and which is the target."""
    rows = np.concatenate([np.arange(a, b) for a, b in zip(plan.start, plan.stop, strict=True)])
    is_target = np.zeros(len(rows), bool)
    is_target[np.cumsum(plan.stop - plan.start) - 1] = True
    return store.text[rows].astype(np.int64), store.label[rows], is_target


if __name__ == "__main__":
    main()
