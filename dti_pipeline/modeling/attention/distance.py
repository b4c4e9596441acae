"""What a [SUM] query knows of distance: the paper's two fixes, as numbers.

*Positions.* The paper takes position ids from [SUM] and gives it ALiBi (Press et al., arXiv 2108.12409) instead. Under
rotary positions that needs un-rotated keys too: an un-rotated query against rotated keys is not shift-invariant.

*Forgetting.* What a [SUM] reads from a token d interactions back is pulled towards that token's initial embedding,
``(1 - a(d)) h + a(d) h0``. The paper's a(d) is not public; the families here are this project's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def alibi_slopes(heads: int) -> Tensor:
    """(heads,) slopes 2^(-8/H), 2^(-16/H), ...; for H not a power of two, as ALiBi's authors fill them in."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes)


def forgetting(distance: Tensor, family: str, maximum: float, context: int) -> Tensor:
    """a(d) in [0, maximum] for distances in interactions: 0 at d = 0, ``maximum`` at d = n and beyond."""
    share = (distance.float() / max(context, 1)).clamp(0, 1)
    if family == "linear":
        return maximum * share
    if family == "quadratic":
        return maximum * share**2
    if family == "square_root":
        return maximum * share.sqrt()
    raise ValueError(f"unknown forgetting family {family!r}")


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x`` (B, H, L, D) at the positions of a rotary embedding ``cos`` and ``sin`` (B, L, D)."""
    return x * cos[:, None] + _quarter_turn(x) * sin[:, None]


def unrotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Undo a rotary embedding: ``x`` (B, H, L, D) as it was before positions, ``cos`` and ``sin`` (B, L, D).

    Rotation is orthogonal, so its inverse is the rotation by the opposite angle; a scaled rotary embedding (YaRN)
    has its scale divided out.
    """
    cos, sin = cos[:, None], sin[:, None]
    return (x * cos - _quarter_turn(x) * sin) / (cos**2 + sin**2)


def _quarter_turn(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)
