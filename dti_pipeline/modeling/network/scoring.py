"""Scores of a plan's targets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dti_pipeline.modeling.network.ahead import prefetched
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.packing.reader import Rows, split
from dti_pipeline.paradigms import Paradigm


def score(
    model: nn.Module,
    rows: Rows,
    wanted: NDArray[np.int64],
    tokens_per_batch: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
    paradigm: Paradigm | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Log rows of the targets in the ``wanted`` rows of a plan, ascending, and their probabilities; see
    :func:`logits`."""
    target, logit = logits(model, rows, wanted, tokens_per_batch, device, autocast, paradigm)
    return target, torch.sigmoid(torch.from_numpy(logit)).numpy()


@torch.no_grad()
def logits(
    model: nn.Module,
    rows: Rows,
    wanted: NDArray[np.int64],
    tokens_per_batch: int,
    device: torch.device,
    autocast: torch.dtype | None = None,
    paradigm: Paradigm | None = None,
    change: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Log rows of the targets in the ``wanted`` rows of a plan, ascending, and their logits.

    ``paradigm``: that of the rows, where it is not the model's own. ``change`` is made to each batch before it is
    computed. ``model`` is left in the mode it is in; put it in ``eval`` first. Cost: one forward pass over those rows;
    on a GPU a thread assembles its batches beside it.
    """
    targets, found, counted = [], [], []
    cuda = device.type == "cuda"
    most = rows.height(tokens_per_batch)
    parts = split(wanted, most)
    # On a GPU every batch is padded to one shape, rows to one number of targets: one compilation.
    height = padded_height(len(wanted), most) if cuda else 0
    places = rows.most_targets if cuda and len(parts) > 1 else 0

    def assemble(part: NDArray[np.int64]) -> Batch:
        batch = change(Batch.of(rows.assemble(part, height), rows.store.label, places))
        return batch.pin() if cuda else batch

    for batch in prefetched(parts, assemble) if cuda and len(parts) > 1 else map(assemble, parts):
        # Copies: a batch's pinned memory is used again when nothing refers to it.
        targets.append(batch.target.clone())
        counted.append(batch.weight > 0)
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            found.append(model(batch.to(device), paradigm).float())
    if not targets:
        return np.zeros(0, np.int64), np.zeros(0)
    real = torch.cat(counted)
    target = torch.cat(targets)[real].numpy()
    logit = torch.cat(found).cpu()[real].double().numpy()
    order = np.argsort(target)
    return target[order], logit[order]


def padded_height(wanted: int, most: int) -> int:
    """Rows that the batches of ``wanted`` rows are padded to, ``most`` at most: the next power of two, since a server
    would otherwise compile for requests of every size, seconds each, until it reaches the compiler's limit."""
    return min(most, 1 << (wanted - 1).bit_length()) if wanted else 0
