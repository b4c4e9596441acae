"""Scores of held-out targets, in both forms: one prompt a target, as a server sees it, and streaming."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.compilation import compile_to_score
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.modeling.network.storage import load
from dti_pipeline.modeling.speed import compiler_cache
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths

log = logging.getLogger(__name__)
#: Columns of the two forms.
COLUMNS = {"sliding_window": "probability", "streaming": "probability_streaming"}
#: What suits a device where evaluation.tokens_per_batch is null: smaller batches leave a large GPU idle.
TOKENS_PER_BATCH = {"cuda": 131072, "cpu": 32768}


@dataclass
class Batches:
    """Scores in batches of ``tokens`` tokens, and from then on of half as many where one does not fit the memory."""

    tokens: int

    def score(self, model: nn.Module, rows: Rows, wanted: np.ndarray, **how: Any) -> tuple[np.ndarray, np.ndarray]:
        """As :func:`score`. Raises torch.OutOfMemoryError where not even one row fits."""
        while True:
            try:
                return score(model, rows, wanted, self.tokens, **how)
            except torch.OutOfMemoryError:
                height = min(rows.height(self.tokens), len(wanted))
                if height == 1:
                    raise
            gc.collect()  # tensors that the error's frames held
            full, self.tokens = height * rows.row_length, height // 2 * rows.row_length
            log.warning(
                "a batch of %s tokens does not fit the memory: scores are computed in batches of %s tokens;"
                " evaluation.tokens_per_batch: %d saves the attempt", f"{full:,}", f"{self.tokens:,}", self.tokens,
            )  # fmt: skip


def predict(config: Config, paths: Paths, paradigm: str, split: str) -> tuple[pa.Table, dict[str, float]]:
    """Score every target of ``split``: columns ``row`` (of the log, ascending), ``label``, ``probability`` (one prompt
    a target), ``probability_streaming``; how long each form took, without compilation, and threads.

    Raises InputError where the model was trained on other tokens than are there now.
    """
    manifest = artifacts.read(paths.model(paradigm), "train")
    if manifest.inputs["tokens"] != artifacts.folder_digest(paths.tokens):
        raise InputError(
            f"{manifest.path} was trained on other tokens than {paths.tokens} holds: run `dti train` again"
        )
    cuda = config.training.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    compiler_cache.keep(paths.compiled)
    model = load(manifest.path, device)
    autocast = torch.bfloat16 if manifest.config["training"]["dtype"] == "bfloat16" else None  # as it was trained
    store = TokenStore.open(paths.tokens)
    if artifacts.read(paths.shards(paradigm), "pack").inputs["tokens"] != manifest.inputs["tokens"]:
        raise InputError(
            f"{paths.shards(paradigm)} was packed from other tokens than {paths.tokens} holds: run `dti pack` again"
        )
    batches = Batches(config.evaluation.tokens_per_batch or TOKENS_PER_BATCH[device.type])
    forms: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {}
    plans: dict[str, Rows] = {}
    for form, plan, mask in (
        ("sliding_window", split, model.paradigm),
        ("streaming", f"{split}_streaming", model.paradigm.in_streams()),
    ):
        rows = plans[form] = Rows.open(store, paths.shards(paradigm), plan)
        if not len(rows):
            raise InputError(f"the {split} split has no targets: check split and split.min_history")
        forms[form] = partial(batches.score, model, rows, device=device, autocast=autocast, paradigm=mask)

    def try_out() -> None:
        for form, compute in forms.items():
            compute(wanted=np.arange(min(len(plans[form]), 2 * plans[form].height(batches.tokens))))

    compile_to_score(model, sum(len(rows) * rows.row_length for rows in plans.values()), try_out)
    columns: dict[str, np.ndarray] = {}
    facts: dict[str, float] = {"threads": torch.get_num_threads()}  # scores depend on them in their last digits
    for form, compute in forms.items():
        start = time.perf_counter()
        row, columns[COLUMNS[form]] = compute(wanted=np.arange(len(plans[form])))
        seconds = time.perf_counter() - start
        facts[f"seconds_{form}"] = round(seconds, 3)
        facts[f"targets_per_second_{form}"] = round(len(row) / max(seconds, 1e-9), 1)
    return pa.table({"row": row, "label": store.label[row], **columns}), facts
