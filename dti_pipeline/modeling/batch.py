"""Layout to tensors: what a model is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from dti_pipeline.modeling.masks import Tokens
from dti_pipeline.packing.layout import Kind, Layout


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens, T targets among them, ordered by row and slot; at most S targets in a row."""

    token: Tensor  # (B, L) int64
    position: Tensor  # (B, L) int64
    document: Tensor  # (B, L) int32
    interaction: Tensor  # (B, L) int32
    kind: Tensor  # (B, L) int8
    sum_index: Tensor  # (T,) int64, flat: row * L + slot of each [SUM]
    sum_within: Tensor  # (T,) int64, how many [SUM]s of its row stand before it
    sum_slot: Tensor  # (B, S) int64, slots of each row's [SUM]s; the last one again and again where there are fewer
    sum_valid: Tensor  # (B, S) bool, False on that filling
    label: Tensor  # (T,) float32, 0 or 1
    target: Tensor  # (T,) int64, row of the log
    host: Batch | None = None  # of one that was moved to a GPU: what it was before, to be read without waiting

    @classmethod
    def of(cls, layout: Layout, label_of_row: np.ndarray) -> Batch:
        """Tensors of a layout; ``label_of_row`` (m,) are the log's labels. Shares memory where dtypes allow."""
        is_sum = layout.kind == Kind.SUM
        index = np.flatnonzero(is_sum)
        target = layout.target.reshape(-1)[index]
        row, slot = np.divmod(index, is_sum.shape[1])
        count = is_sum.sum(1)
        within = np.arange(len(index)) - (count.cumsum() - count)[row]
        place = np.arange(max(1, count.max(initial=0)))
        slots = np.zeros((len(count), len(place)), np.int64)
        slots[row, within] = slot
        slots = np.take_along_axis(slots, np.minimum(place, np.maximum(count - 1, 0)[:, None]), axis=1)
        return cls(
            token=torch.from_numpy(layout.token).long(),
            position=torch.from_numpy(layout.position).long(),
            document=torch.from_numpy(layout.document),
            interaction=torch.from_numpy(layout.interaction),
            kind=torch.from_numpy(layout.kind),
            sum_index=torch.from_numpy(index),
            sum_within=torch.from_numpy(within),
            sum_slot=torch.from_numpy(slots),
            sum_valid=torch.from_numpy(place < count[:, None]),
            label=torch.from_numpy(label_of_row[target].astype(np.float32)),
            target=torch.from_numpy(target),
        )

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.document, self.interaction, self.kind)

    def to(self, device: torch.device) -> Batch:
        moved = self._each(lambda x: x.to(device, non_blocking=True))
        return replace(moved, host=self) if device.type == "cuda" else moved

    def pin(self) -> Batch:
        """In page-locked memory, from which a copy to the GPU does not wait."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {f.name: change(getattr(self, f.name)) for f in fields(self) if f.name != "host"}
        return Batch(host=None, **tensors)
