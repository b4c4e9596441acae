"""The training targets that `packing.target_share` and `packing.max_targets` leave."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.config import PackingConfig
from dti_pipeline.errors import InputError


def limited(targets: NDArray[np.bool_], position: NDArray[np.int32], packing: PackingConfig) -> NDArray[np.bool_]:
    """The training targets (m,) that ``packing.target_share`` and ``packing.max_targets`` leave."""
    if packing.target_share < 1:
        targets = share(targets, position, packing.target_share, packing.seed)
    if packing.max_targets is not None:
        targets = limit(targets, position, packing.max_targets, packing.seed)
    return targets


def share(targets: NDArray[np.bool_], position: NDArray[np.int32], wanted: float, seed: int) -> NDArray[np.bool_]:
    """Keep whole users, in an order drawn by ``seed``, one at least, so many that the share of their targets is nearest
    to ``wanted``. Scattered targets would be prompts of one target each: no paradigm but the sliding window."""
    user = np.cumsum(position == 0) - 1
    each = np.bincount(user, weights=targets)
    order = np.random.default_rng(seed).permutation(len(each))
    order = order[each[order] > 0]
    reached = np.cumsum(each[order])
    users = 1 + int(np.abs(reached - wanted * reached[-1]).argmin())
    return targets & np.isin(user, order[:users])


def limit(targets: NDArray[np.bool_], position: NDArray[np.int32], most: int, seed: int) -> NDArray[np.bool_]:
    """Keep whole users, in an order drawn by ``seed``, while their targets number at most ``most``."""
    first = np.flatnonzero(position == 0)
    user = np.cumsum(position == 0) - 1
    each = np.bincount(user, weights=targets, minlength=len(first)).astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(first))
    keep = np.zeros(len(first), bool)
    keep[order] = np.cumsum(each[order]) <= most
    if not each[keep].sum():
        raise InputError(f"params key `packing.max_targets` is {most}: too few for even one user's targets")
    return targets & keep[user]
