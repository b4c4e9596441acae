"""How many held-out targets a second are scored: one prompt a target, streaming prompts, and from kept item states?

The demo's model (untrained: weights do not change the time) over the demo log's test targets. The forms of each
paradigm are scored in alternation, assembly counted, one thread, medians of CPU time. `one prompt, item states kept`
scores the prompts of the first form (`dti_isolated` only) when the states of all items are there; making them once has
a line of its own.

With --shape a model of that shape is measured on a GPU instead: scoring of single prompts, assembly and copies counted,
beside the forward pass alone on a batch that lies there, which is its limit. Random weights, LoRA adapters, compiled.

    python -m benchmarks.evaluation                          # a CPU
    python -m benchmarks.evaluation --shape smollm2-135m     # one GPU, two minutes
    python -m benchmarks.evaluation --shape tiny --tiny      # the same code on a CPU, to test it
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
from numpy.typing import NDArray

from benchmarks.lib import llama
from benchmarks.lib.harness import ROOT, parser, prepared, publish
from benchmarks.lib.scoring_limit import against_its_limit
from benchmarks.lib.timing import alternate, gpus
from benchmarks.lib.training import model_of, rows_of
from dti_pipeline import config
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import PARADIGMS, Paradigm
from dti_pipeline.paths import Paths
from dti_pipeline.serving.item_states import Asked, ItemStates

ONE, STREAMING, KEPT = "one prompt a target", "streaming", "one prompt, item states kept"
FORMS = {ONE: "test", STREAMING: "test_streaming"}
CPU = torch.device("cpu")


def main() -> None:
    options = parser(__doc__, gpu=True)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--shape", help="smollm2-135m, say: measure a model of that shape on a GPU")
    options.add_argument("--sizes", type=int, nargs="+", default=[32768, 131072], help="of a batch, tokens")
    given = options.parse_args()
    if given.shape is not None:
        device = torch.device("cpu" if given.tiny or not torch.cuda.is_available() else "cuda")
        sizes, users, row_length = ([512, 1024], 8, 512) if given.tiny else (given.sizes, 8000, 8192)
        shape = llama.shape_named("tiny" if given.tiny else given.shape)
        publish("evaluation_gpu", against_its_limit(shape, sizes, users, row_length, device), given, gpus=gpus(device))
        return
    torch.set_num_threads(1)
    settings = config.load(ROOT / "params.yaml")
    with tempfile.TemporaryDirectory() as scratch:
        prepared(Path(scratch))
        store = TokenStore.open(Paths(Path(scratch)).tokens)
        rows = [row for paradigm in PARADIGMS for row in measure(settings, store, paradigm, given.repeats)]
    publish("evaluation", rows, given)


def measure(settings: config.Config, store: TokenStore, paradigm: Paradigm, repeats: int) -> list[dict[str, Any]]:
    plans = {form: rows_of(settings, store, paradigm, plan)[0] for form, plan in FORMS.items()}
    masks = {ONE: paradigm, STREAMING: paradigm.in_streams()}  # as in the evaluation
    model = model_of(settings, store, paradigm).eval()
    tokens = settings.training.tokens_per_batch

    def scored(form: str) -> None:
        score(model, plans[form], np.arange(len(plans[form])), tokens, CPU, paradigm=masks[form])

    def states() -> tuple[ItemStates, NDArray[np.int64]]:
        made = ItemStates(model, CPU)
        return made, made.of(store.tokens, store.offsets, tokens)

    calls: dict[str, Callable[[], object]] = {form: partial(scored, form) for form in FORMS}
    targets = int(plans[ONE].targets().sum())
    if paradigm.items_stand_alone:
        made, of_text = states()
        calls[KEPT] = partial(made.score, _histories(store, plans[ONE], of_text))
        calls["making the states"] = states
    seconds = {form: statistics.median(times) for form, times in alternate(calls, repeats).items()}
    return [
        {
            "paradigm": paradigm.name,
            "form": form,
            "targets": targets if form in (*FORMS, KEPT) else None,
            "seconds": round(taken, 3),
            "targets_per_second": round(targets / taken, 1) if form in (*FORMS, KEPT) else None,
            "share_of_first_form": round(taken / seconds[ONE], 4),
        }
        for form, taken in seconds.items()
    ]


def _histories(store: TokenStore, plan: Rows, state: NDArray[np.int64]) -> list[Asked]:
    """The prompts of a plan, whose targets are the last rows; ``state``: of each text."""
    found, lengths = [], store.lengths().astype(np.int64)
    for start, stop in zip(plan.start, plan.stop, strict=True):
        context = slice(start, stop - 1)
        ends = np.cumsum(lengths[context])
        label = store.label[context].astype(np.int64)
        behind = int(ends[-1]) if len(ends) else 0
        target = state[store.text[stop - 1 : stop]]
        found.append(Asked(state[store.text[context]], label, ends - lengths[context], target, behind))
    return found


if __name__ == "__main__":
    main()
