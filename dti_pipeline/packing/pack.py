"""Row plans: which prompts make up each training row, and the prompts that held-out targets are scored in."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.artifacts import Inputs
from dti_pipeline.config import Config, PackingConfig
from dti_pipeline.errors import InputError
from dti_pipeline.packing import best_fit, prompts, row_length
from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.packing.report import PackReport, PlanReport
from dti_pipeline.packing.store import SPLITS, TokenStore, require_events, write_columns
from dti_pipeline.paradigms import Paradigm, named
from dti_pipeline.paths import Paths

#: Plans in a shards folder. Held-out targets come in two forms: alone, as a server sees them, and streaming.
PLANS = ("train", "validation", "validation_streaming", "test", "test_streaming")
#: Rows of the log planned at a time.
BLOCK = 1 << 21


def targets_per_prompt(config: Config, plan: str, paradigm: Paradigm) -> int | None:
    """k of a plan; None for "as many as a row holds". The baseline trains on k = 1, everything else being equal."""
    if plan in ("validation", "test"):
        return 1
    wanted = None if config.packing.targets == "all" else config.packing.targets
    return paradigm.targets(wanted) if plan == "train" else wanted


def pack(config: Config, paths: Paths, paradigm: str) -> PackReport:
    """Plan the rows of one paradigm. Every target of the log is in exactly one prompt of its plan, or is counted as
    dropped with the reason. Plans hold spans of the log, never tokens. Raises InputError where the tokens are of other
    events than the home holds."""
    inputs = Inputs.published(tokens=(paths.tokens, "tokenize"))
    store = TokenStore.open(paths.tokens)
    require_events(paths)
    recorded = config.sections("packing", "split")
    config = row_length.settled(config, store)
    plans = {}
    with artifacts.publish(paths.shards(paradigm), "pack", recorded, inputs) as draft:
        for plan in PLANS:
            plans[plan], cut, row = plan_rows(config, store, named(paradigm), plan)
            columns = {"start": cut.start, "first_target": cut.first_target, "stop": cut.stop}
            write_columns(draft.path / f"{plan}.arrow", {"row": row, **columns})
        padding = plans["train"].padding_share if named(paradigm).streams else 0.0
        better = row_length.better(config, store, padding)
        report = draft.report = PackReport(
            **vars(plans["train"]),
            paradigm=paradigm,
            context=config.packing.context,
            row_length=config.packing.tokens_a_row,
            plans=plans,
            advice=None if better is None else better.advice(padding),
        )
    return report


def plan_rows(
    config: Config, store: TokenStore, paradigm: Paradigm, plan: str
) -> tuple[PlanReport, Prompts, NDArray[np.int32]]:
    """One plan: its counts, its ``p`` prompts in the order of their rows, and the row (p,) of each.

    Users are packed a block at a time, into rows of their own. Memory: 20 bytes a prompt and a few a row of the log.
    """
    packing = config.packing
    split = SPLITS.index(plan.removesuffix("_streaming"))
    kept = (store.split == split) & (store.request >= config.split.min_history)
    in_log = int(kept.sum())
    if plan == "train":
        if not in_log:
            raise InputError(
                f"no training target: none has split.min_history = {config.split.min_history} rows before its request"
            )
        kept = limited(kept, store.position, packing)
    k, seen = targets_per_prompt(config, plan, paradigm), store.seen
    text_lengths = (np.diff(store.offsets) + 1).astype(np.int32)
    # Room for a prompt a target; what is not written to takes no memory.
    targets = int(kept.sum())
    kind = np.int32 if len(kept) < 2**31 else np.int64
    start, first_target, stop = (np.empty(targets, kind) for _ in range(3))
    length, row = np.empty(targets, np.int32), np.empty(targets, np.int32)
    end = rows = ended = 0
    for number, block in enumerate(_blocks(store.position)):
        position, lengths = store.position[block], text_lengths[store.text[block]]
        cut, closed = prompts.cut(
            kept[block], position, seen[block], lengths, packing.context, k, packing.tokens_a_row, store.opening(block)
        )
        ended += closed
        packed = best_fit.pack(cut.length, packing.tokens_a_row, packing.seed + number)
        order = np.argsort(packed.row, kind="stable")
        here = slice(end, end := end + len(cut))
        start[here] = cut.start[order] + block.start
        first_target[here] = cut.first_target[order] + block.start
        stop[here] = cut.stop[order] + block.start
        length[here], row[here] = cut.length[order], packed.row[order] + rows
        rows += packed.rows
    found = Prompts(start[:end], first_target[:end], stop[:end], length[:end])
    assert found.targets == targets, "a target was lost"
    dropped, tokens = in_log - targets, int(found.length.sum())
    report = PlanReport(
        targets=targets,
        targets_in_log=in_log,
        dropped=dropped,
        dropped_reason=_limits(packing) if dropped else None,
        targets_per_prompt=k or "all",
        prompts=len(found),
        prompts_cut_by_row=ended,
        rows=rows,
        tokens=tokens,
        tokens_per_target=round(tokens / max(targets, 1), 4),
        padding_share=round(1 - tokens / max(rows * packing.tokens_a_row, 1), 6),
    )
    return report, found, row[:end]


def _blocks(position: NDArray[np.int32]) -> Iterator[slice]:
    """Slices of about BLOCK rows of the log that part no user's history."""
    begin = 0
    while begin < len(position):
        end = begin + BLOCK
        while end < len(position) and position[end] != 0:  # a history is short beside a block
            end += 1
        yield slice(begin, min(end, len(position)))
        begin = end


def _limits(packing: PackingConfig) -> str:
    share = [f"packing.target_share = {packing.target_share:g}"] if packing.target_share < 1 else []
    most = [f"packing.max_targets = {packing.max_targets}"] if packing.max_targets is not None else []
    return ", ".join(share + most)


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
