"""Batches: the tensors of packed rows, and the pinned memory they are copied to a GPU from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dti_pipeline.modeling.masks.visibility import Tokens
from dti_pipeline.packing.compiled import compiled
from dti_pipeline.packing.layout import DTYPES, Kind, Layout

#: Arrays with one number a token: those of a layout.
OF_TOKENS = tuple(name for name in DTYPES if name != "target")
#: Arrays with one number a target, and with one for each place of a row where a target may be.
OF_TARGETS = {
    "sum_index": np.int64,
    "sum_within": np.int64,
    "label": np.float32,
    "weight": np.float32,
    "target": np.int64,
}
OF_PLACES = {"sum_slot": np.int64, "sum_valid": np.bool_}


class Words(Protocol):
    """Tokens and their kinds, (B, L): what the first layer's input is made of."""

    @property
    def token(self) -> Tensor: ...

    @property
    def kind(self) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """B rows of L tokens, T targets among them, ordered by row and slot; at most S targets in a row.

    A batch may be padded in targets: every row then has S of them, repeating its own last one, and T = B S. Padding has
    no weight in the loss.
    """

    token: Tensor  # (B, L) int32
    position: Tensor  # (B, L) int32
    document: Tensor  # (B, L) int32
    interaction: Tensor  # (B, L) int32
    seen: Tensor  # (B, L) int32
    known: Tensor  # (B, L) int32
    kind: Tensor  # (B, L) int8
    sum_index: Tensor  # (T,) int64, flat: row * L + slot of each [SUM]
    sum_within: Tensor  # (T,) int64, how many [SUM]s of its row stand before it
    sum_slot: Tensor  # (B, S) int64, slots of each row's [SUM]s; the last one again and again where there are fewer
    sum_valid: Tensor  # (B, S) bool, False on that padding
    label: Tensor  # (T,) float32, 0 or 1
    weight: Tensor  # (T,) float32, of each target's loss: 1, or 0 where it counts for nothing
    target: Tensor  # (T,) int64, row of the log
    host: Batch | None = None  # its copy in the CPU's memory, of one on a GPU: read without waiting
    memory: Tensor | None = None  # the one buffer that holds all tensors, where there is one

    @classmethod
    def of(cls, layout: Layout, label_of_row: np.ndarray, padded_targets: int = 0) -> Batch:
        """Tensors of a layout, whose arrays they share; ``label_of_row`` (m,) are the log's labels.

        With ``padded_targets``, every row has so many targets and no shape depends on the rows' content; IndexError
        where a row has more.
        """
        kind = int(Kind.SUM)
        count = _count(layout.kind, kind)
        most = int(count.max(initial=0))
        if padded_targets and most > padded_targets:
            raise IndexError(f"a row of {most} targets, where there are to be {padded_targets}")
        rows, places = len(layout.kind), padded_targets or max(1, most)
        targets = rows * places if padded_targets else int(count.sum())
        named = {name: np.empty(targets, dtype) for name, dtype in OF_TARGETS.items()}
        named |= {name: np.empty((rows, places), dtype) for name, dtype in OF_PLACES.items()}
        _find_targets(layout.kind, layout.target, label_of_row, count, padded_targets > 0, kind, tuple(named.values()))
        named |= {name: getattr(layout, name) for name in OF_TOKENS}
        return cls(host=None, memory=None, **{name: torch.from_numpy(x) for name, x in named.items()})

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.document, self.interaction, self.kind, self.seen, self.known)

    @property
    def late(self) -> bool:
        """Whether some token does not know all labels before its own interaction; read without waiting for a GPU."""
        here = self.host or self
        return bool((here.known < here.interaction).any())

    def to(self, device: torch.device) -> Batch:
        if self.memory is None:
            moved = self._each(lambda x: x.to(device, non_blocking=True))
        else:
            moved = self._in(self.memory.to(device, non_blocking=True))
        return replace(moved, host=self) if device.type == "cuda" else moved

    def pin(self) -> Batch:
        """The batch in one pinned buffer: its copy to the GPU is one, and does not wait."""
        size = _starts(x.nbytes for x in self.tensors())[-1]
        pinned = self._in(torch.empty(size, dtype=torch.uint8, pin_memory=True))
        for target, source in zip(pinned.tensors(), self.tensors(), strict=True):
            target.copy_(source)
        return pinned

    def without_weight(self) -> Batch:
        """The same batch, without weight in the loss."""
        return replace(self, weight=torch.zeros_like(self.weight), memory=None)

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of the fields."""
        return list(self._named().values())

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(host=None, memory=None, **{name: change(tensor) for name, tensor in self._named().items()})

    def _in(self, memory: Tensor) -> Batch:
        """Tensors of the same shapes in ``memory``."""
        named = self._named()
        starts = _starts(tensor.nbytes for tensor in named.values())
        placed = {
            name: memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for (name, tensor), start in zip(named.items(), starts, strict=False)
        }
        return Batch(host=None, memory=memory, **placed)

    def _named(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("host", "memory")}


@compiled
def _count(kind: Any, sum_kind: int) -> Any:
    """(B,) [SUM]s of each row."""
    count = np.zeros(len(kind), np.int64)
    for row in range(len(kind)):
        for slot in range(kind.shape[1]):
            count[row] += kind[row, slot] == sum_kind
    return count


@compiled
def _find_targets(
    kind: Any, target_at: Any, label_of_row: Any, count: Any, padded: bool, sum_kind: int,
    out: tuple[Any, Any, Any, Any, Any, Any, Any],
) -> None:  # fmt: skip
    """Write the arrays of each target, and of each place where one may be."""
    index, within, label, weight, target, slots, valid = out
    length, places = kind.shape[1], slots.shape[1]
    taken = 0
    for row in range(len(kind)):
        slot, last = 0, 0
        for place in range(places):
            here = place < count[row]
            if here:
                while kind[row, slot] != sum_kind:
                    slot += 1
                last = slot
                slot += 1
            slots[row, place], valid[row, place] = last, here
            if here or padded:
                index[taken], within[taken] = row * length + last, place
                of_log = target_at[row, last]
                target[taken], weight[taken] = of_log, here
                label[taken] = label_of_row[max(of_log, 0)]
                taken += 1


def _starts(sizes: Iterable[int]) -> list[int]:
    """Where tensors of so many bytes begin in one memory, and its end: as torch's own allocator places them."""
    return list(accumulate((-(-size // 512) * 512 for size in sizes), initial=0))
