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
    """B rows of L tokens, T targets among them, ordered by row and slot; at most S targets in a row.

    A batch may be filled: every row has S targets then, the last of its own again and again, and T = B S. What fills up
    has no weight in the loss.
    """

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
    weight: Tensor  # (T,) float32, of each target's loss: 1, or 0 where it counts for nothing
    target: Tensor  # (T,) int64, row of the log
    host: Batch | None = None  # of one that was moved to a GPU: what it was before, to be read without waiting
    memory: Tensor | None = None  # bytes that all tensors lie in, one behind the other, where they do

    @classmethod
    def of(cls, layout: Layout, label_of_row: np.ndarray, filled: int = 0) -> Batch:
        """Tensors of a layout; ``label_of_row`` (m,) are the log's labels. Shares memory where dtypes allow.

        With ``filled``, the batch is filled up to so many targets a row, and all its tensors have shapes that do not
        depend on what the rows hold.
        """
        is_sum = layout.kind == Kind.SUM
        rows, length = is_sum.shape
        row, slot = np.divmod(np.flatnonzero(is_sum), length)
        count = np.bincount(row, minlength=rows)
        place = np.arange(filled or max(1, count.max(initial=0)))
        slots = np.zeros((rows, len(place)), np.int64)
        slots[row, np.arange(len(row)) - (count.cumsum() - count)[row]] = slot
        slots = np.take_along_axis(slots, np.minimum(place, np.maximum(count - 1, 0)[:, None]), axis=1)
        valid = place < count[:, None]
        taken = np.ones_like(valid) if filled else valid
        index = (slots + length * np.arange(rows)[:, None])[taken]
        target = layout.target.reshape(-1)[index]
        return cls(
            token=torch.from_numpy(layout.token).long(),
            position=torch.from_numpy(layout.position).long(),
            document=torch.from_numpy(layout.document),
            interaction=torch.from_numpy(layout.interaction),
            kind=torch.from_numpy(layout.kind),
            sum_index=torch.from_numpy(index),
            sum_within=torch.from_numpy(np.broadcast_to(place, valid.shape)[taken]),
            sum_slot=torch.from_numpy(slots),
            sum_valid=torch.from_numpy(valid),
            label=torch.from_numpy(label_of_row[target].astype(np.float32)),
            weight=torch.from_numpy(valid[taken].astype(np.float32)),
            target=torch.from_numpy(target),
        )

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.document, self.interaction, self.kind)

    def to(self, device: torch.device) -> Batch:
        if self.memory is None:
            moved = self._each(lambda x: x.to(device, non_blocking=True))
        else:
            moved = self._in(self.memory.to(device, non_blocking=True))
        return replace(moved, host=self) if device.type == "cuda" else moved

    def pin(self) -> Batch:
        """In one piece of page-locked memory, from which a copy to the GPU does not wait, and is one."""
        size = sum(_aligned(x.nbytes) for x in self.tensors())
        pinned = self._in(torch.empty(size, dtype=torch.uint8, pin_memory=True))
        for target, source in zip(pinned.tensors(), self.tensors(), strict=True):
            target.copy_(source)
        return pinned

    def without_weight(self) -> Batch:
        """The same, counting for nothing."""
        return replace(self, weight=torch.zeros_like(self.weight), memory=None)

    def tensors(self) -> list[Tensor]:
        """All of them, in one order."""
        return list(self._named().values())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(host=None, memory=None, **{name: change(tensor) for name, tensor in self._named().items()})

    def _in(self, memory: Tensor) -> Batch:
        """Tensors like these in ``memory``, whatever it holds."""
        start, named = 0, {}
        for name, tensor in self._named().items():
            named[name] = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            start += _aligned(tensor.nbytes)
        return Batch(host=None, memory=memory, **named)

    def _named(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("host", "memory")}


def _aligned(size: int) -> int:
    """Bytes up to where a next tensor may begin: as torch's own allocator places them."""
    return -(-size // 512) * 512
