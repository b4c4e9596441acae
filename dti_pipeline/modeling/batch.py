"""Layout to tensors: what a model is given."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dti_pipeline.modeling.masks import Tokens
from dti_pipeline.packing.layout import Kind, Layout


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens, T targets among them, ordered by row and slot."""

    token: Tensor  # (B, L) int64
    position: Tensor  # (B, L) int64
    document: Tensor  # (B, L) int32
    interaction: Tensor  # (B, L) int32
    kind: Tensor  # (B, L) int8
    sum_index: Tensor  # (T,) int64, flat: row * L + slot of each [SUM]
    label: Tensor  # (T,) float32, 0 or 1
    target: Tensor  # (T,) int64, row of the log

    @classmethod
    def of(cls, layout: Layout, label_of_row: np.ndarray) -> Batch:
        """Tensors of a layout; ``label_of_row`` (m,) are the log's labels. Shares memory where dtypes allow."""
        index = np.flatnonzero(layout.kind == Kind.SUM)
        target = layout.target.reshape(-1)[index]
        return cls(
            token=torch.from_numpy(layout.token).long(),
            position=torch.from_numpy(layout.position).long(),
            document=torch.from_numpy(layout.document),
            interaction=torch.from_numpy(layout.interaction),
            kind=torch.from_numpy(layout.kind),
            sum_index=torch.from_numpy(index),
            label=torch.from_numpy(label_of_row[target].astype(np.float32)),
            target=torch.from_numpy(target),
        )

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.document, self.interaction, self.kind)

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def pin(self) -> Batch:
        """In page-locked memory, from which a copy to the GPU does not wait."""
        return Batch(*(getattr(self, f.name).pin_memory() for f in fields(self)))
