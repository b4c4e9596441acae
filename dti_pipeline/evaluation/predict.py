"""Scores of held-out targets, in both forms: one prompt a target, as a server sees it, and streaming."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import torch

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.modeling.network.storage import load
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths


def predict(config: Config, paths: Paths, paradigm: str, split: str) -> tuple[pa.Table, dict[str, float]]:
    """Score every target of ``split``: columns ``row`` (of the log, ascending), ``label``, ``probability`` (one prompt
    a target) and ``probability_streaming``; and how long each form took.

    Raises InputError where the model was trained on other tokens than are there now.
    """
    manifest = artifacts.read(paths.model(paradigm), "train")
    tokens = artifacts.folder_digest(paths.tokens)
    if manifest.inputs["tokens"] != tokens:
        raise InputError(
            f"{manifest.path} was trained on other tokens than {paths.tokens} holds: run `dti train` again"
        )
    cuda = config.training.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model = load(manifest.path, device)
    autocast = torch.bfloat16 if manifest.config["training"]["dtype"] == "bfloat16" else None  # as it was trained
    store = TokenStore.open(paths.tokens)
    columns: dict[str, np.ndarray] = {}
    facts: dict[str, float] = {}
    for plan, name in ((split, "probability"), (f"{split}_streaming", "probability_streaming")):
        row, columns[name], seconds = _score(config, paths, paradigm, plan, model, store, device, autocast)
        form = "streaming" if plan.endswith("_streaming") else "sliding_window"
        facts[f"seconds_{form}"] = round(seconds, 3)
        facts[f"targets_per_second_{form}"] = round(len(row) / max(seconds, 1e-9), 1)
    return pa.table({"row": row, "label": store.label[row], **columns}), facts


def _score(
    config: Config,
    paths: Paths,
    paradigm: str,
    plan: str,
    model: CTRModel,
    store: TokenStore,
    device: torch.device,
    autocast: torch.dtype | None,
) -> tuple[np.ndarray, np.ndarray, float]:
    rows = Rows.open(store, paths.shards(paradigm), plan)
    if not len(rows):
        raise InputError(
            f"the {plan.removesuffix('_streaming')} split has no targets: check split and split.min_history"
        )
    mask = model.paradigm.in_streams() if plan.endswith("_streaming") else model.paradigm
    start = time.perf_counter()
    row, probability = score(
        model, rows, np.arange(len(rows)), config.evaluation.tokens_per_batch, device, autocast, mask
    )
    return row, probability, time.perf_counter() - start
