"""[SUM] rows that obey the mask alone, on a CPU: SDPA, band by band, over the keys that some [SUM] of the band sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dti_pipeline.modeling.attention.backends import in_bands
from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums.rows import Rule, SumRows, unblocked

#: [SUM]s of a band.
BAND = 64


@dataclass(frozen=True)
class BandedSums:
    """The :data:`SumOperator` of one batch whose [SUM]s have no rule of their own. Cost: S scores a head for each key
    between the first that a band's [SUM]s see and the last, of all rows together."""

    bands: tuple[tuple[int, int, Tensor], ...]  # first key, end of keys, mask (B, 1, SUMs, keys)

    @classmethod
    def of(cls, slot: Tensor, rule: Rule) -> BandedSums:
        """Of [SUM]s at ``slot`` (B, S)."""
        bands, reach, late = [], rule.spans.reach().gather(1, slot), rule.spans.late()
        for own, first in zip(slot.split(BAND, 1), reach.split(BAND, 1), strict=True):
            start, stop = int(first.min()), int(own.max()) + 1
            key = torch.arange(start, stop, device=slot.device).expand(len(slot), 1, -1)
            bands.append((start, stop, rule.spans.sees(own[..., None], key, late)[:, None]))
        return cls(tuple(bands))

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, rows: SumRows, scale: float,
        layer: LayerInput,
    ) -> Tensor:  # fmt: skip
        ranges = [(start, stop) for start, stop, _ in self.bands]
        return in_bands(query, key, value, ranges, [mask for _, _, mask in self.bands], BAND, scale)


def plain_rows(slot: Tensor, valid: Tensor, rule: Rule, slopes: Tensor) -> SumRows:
    """The [SUM] rows of a batch for :class:`BandedSums`."""
    return unblocked(slot, valid, rule, slopes, BandedSums.of(slot, rule))
