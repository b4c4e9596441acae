"""Row plans: which prompts make up each training row, and the prompts that held-out targets are scored in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.packing import best_fit, prompts
from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.packing.store import SPLITS, TokenStore, write_columns
from dti_pipeline.paths import Paths

#: Plans in a shards folder. Held-out targets come in two forms: alone, as a server sees them, and streaming.
PLANS = ("train", "validation", "validation_streaming", "test", "test_streaming")


def targets_per_prompt(config: Config, plan: str, paradigm: str) -> int | None:
    """k of a plan; None for "as many as a row holds". The baseline trains on k = 1, everything else being equal."""
    if plan in ("validation", "test") or (plan == "train" and paradigm == "sliding_window"):
        return 1
    return None if config.packing.targets == "all" else config.packing.targets


def pack(config: Config, paths: Paths, paradigm: str) -> dict[str, Any]:
    """Plan the rows of one paradigm. Every target of the log is in exactly one prompt of its plan, or is counted as
    dropped with the reason. Plans hold spans of the log, never tokens."""
    store = TokenStore.open(paths.tokens)
    with artifacts.publish(
        paths.shards(paradigm), "pack", config.sections("packing", "split"), {"tokens": paths.tokens}
    ) as draft:
        plans = {}
        for plan in PLANS:
            plans[plan], cut, row = plan_rows(config, store, paradigm, plan)
            columns = {"start": cut.start, "first_target": cut.first_target, "stop": cut.stop}
            write_columns(draft.path / f"{plan}.arrow", {"row": row.astype(np.int32), **columns})
        draft.report |= {
            "paradigm": paradigm,
            "context": config.packing.context,
            "row_length": config.packing.row_length,
            **plans["train"],
            "plans": plans,
        }
    return draft.report


def plan_rows(
    config: Config, store: TokenStore, paradigm: str, plan: str
) -> tuple[dict[str, Any], Prompts, NDArray[np.int64]]:
    """One plan: its counts, its ``p`` prompts in the order of their rows, and the row (p,) of each."""
    packing = config.packing
    split = SPLITS.index(plan.removesuffix("_streaming"))
    in_log = (store.split == split) & (store.position >= config.split.min_history)
    kept = in_log
    if plan == "train":
        if not in_log.any():
            raise InputError(
                f"no training target: no user has more than split.min_history = {config.split.min_history} rows"
            )
        if packing.max_targets is not None:
            kept = _limit(in_log, store.position, packing.max_targets, packing.seed)
    k = targets_per_prompt(config, plan, paradigm)
    cut = prompts.cut(kept, store.position, store.lengths(), packing.context, k, packing.row_length, len(store.prefix))
    packed = best_fit.pack(cut.length, packing.row_length, packing.seed)
    order = np.argsort(packed.row, kind="stable")
    cut, row = cut.take(order), packed.row[order]

    targets, dropped = cut.targets, int(in_log.sum()) - int(kept.sum())
    assert targets + dropped == int(in_log.sum()), "a target was lost"
    tokens = int(cut.length.sum())
    report = {
        "targets": targets,
        "targets_in_log": int(in_log.sum()),
        "dropped": dropped,
        "dropped_reason": f"packing.max_targets = {packing.max_targets}" if dropped else None,
        "targets_per_prompt": k or "all",
        "prompts": len(cut),
        "prompts_cut_by_row": _cut_by_row(cut, k),
        "rows": packed.rows,
        "tokens": tokens,
        "tokens_per_target": round(tokens / max(targets, 1), 4),
        "padding_share": round(1 - tokens / max(packed.rows * packing.row_length, 1), 6),
    }
    return report, cut, row


def _cut_by_row(cut: Prompts, k: int | None) -> int:
    """Prompts that a full row ended before k targets were reached: the next prompt goes on where they stop."""
    ended = cut.stop[:-1] == cut.first_target[1:]
    return int((ended & (k is None or cut.stop[:-1] - cut.first_target[:-1] < (k or 0))).sum())


def _limit(targets: NDArray[np.bool_], position: NDArray[np.int32], most: int, seed: int) -> NDArray[np.bool_]:
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
