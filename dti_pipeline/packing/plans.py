"""One plan of a log: which targets it has, and how a block of users is packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.config import Config, PackingConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events.published import SPLITS
from dti_pipeline.packing import best_fit, prompts
from dti_pipeline.packing.limits import limited
from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.packing.report import PlanCounts, PlanReport
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import Paradigm

#: Rows of the log packed at a time: rows of tokens hold users of one block only, so that the outcome depends on it.
BLOCK = 1 << 21


class Block(NamedTuple):
    """Rows ``[first, stop)`` of the log: whole users."""

    number: int
    first: int
    stop: int

    @property
    def rows(self) -> slice:
        return slice(self.first, self.stop)


class Packed(NamedTuple):
    """The prompts of one block, in the order of their rows, and the row (p,) of each, from 0."""

    prompts: Prompts
    row: NDArray[np.int64]
    counts: PlanCounts


@dataclass(frozen=True)
class Plan:
    """What makes a plan."""

    name: str
    packing: PackingConfig
    min_history: int
    k: int | None  # targets in a prompt, at most; None: as many as a row holds

    @classmethod
    def of(cls, config: Config, paradigm: Paradigm, name: str) -> Plan:
        return cls(name, config.packing, config.split.min_history, targets_per_prompt(config, name, paradigm))

    def targets(self, store: TokenStore, rows: slice = slice(None)) -> NDArray[np.bool_]:
        """Whether each of these rows of the log is a target, before any limit."""
        split = SPLITS.index(self.name.removesuffix("_streaming"))
        return (store.split[rows] == split) & (store.request[rows] >= self.min_history)

    def limited(self, store: TokenStore) -> NDArray[np.bool_] | None:
        """The targets (m,) that limits leave; None where there is none."""
        if self.name != "train" or (self.packing.target_share == 1 and self.packing.max_targets is None):
            return None
        targets = self.targets(store)
        self._require(int(targets.sum()))
        return limited(targets, store.position, self.packing)

    def pack(self, store: TokenStore, block: Block, kept: NDArray[np.bool_] | None) -> Packed:
        """Pack the targets of a block, of which ``kept`` (of the block's rows; None: all) stay."""
        rows, all_targets = block.rows, self.targets(store, block.rows)
        kept = all_targets if kept is None else kept
        cut, ended = prompts.cut(
            kept, store.position[rows], store.seen[rows], store.lengths(rows),
            self.packing.context, self.k, self.packing.tokens_a_row, store.opening(rows),
        )  # fmt: skip
        assert cut.targets == kept.sum(), "a target was lost"
        placed = best_fit.pack(cut.length, self.packing.tokens_a_row, self.packing.seed + block.number)
        order = np.argsort(placed.row, kind="stable")
        cut = cut.take(order)
        start, first, stop = (
            (span + block.first).astype(number_of(store)) for span in (cut.start, cut.first_target, cut.stop)
        )
        counts = PlanCounts(cut.targets, int(all_targets.sum()), len(cut), ended, placed.rows, int(cut.length.sum()))
        return Packed(Prompts(start, first, stop, cut.length), placed.row[order], counts)

    def report(self, blocks: Sequence[PlanCounts]) -> PlanReport:
        """The counts of all blocks together. Raises InputError for a training plan without targets."""
        whole = added(blocks)
        if self.name == "train":
            self._require(whole.targets_in_log)
        dropped = whole.targets_in_log - whole.targets
        return PlanReport(
            targets=whole.targets,
            targets_in_log=whole.targets_in_log,
            dropped=dropped,
            dropped_reason=_limits(self.packing) if dropped else None,
            targets_per_prompt=self.k or "all",
            prompts=whole.prompts,
            prompts_cut_by_row=whole.ended,
            rows=whole.rows,
            tokens=whole.tokens,
            tokens_per_target=round(whole.tokens / max(whole.targets, 1), 4),
            padding_share=round(1 - whole.tokens / max(whole.rows * self.packing.tokens_a_row, 1), 6),
        )

    def _require(self, targets: int) -> None:
        if not targets:
            raise InputError(
                f"no training target: none has split.min_history = {self.min_history} rows before its request"
            )


def plan_rows(
    config: Config, store: TokenStore, paradigm: Paradigm, name: str
) -> tuple[PlanReport, Prompts, NDArray[np.int32]]:
    """One plan in memory: its counts, its ``p`` prompts in the order of their rows, and the row (p,) of each."""
    plan = Plan.of(config, paradigm, name)
    kept = plan.limited(store)
    found = [plan.pack(store, block, None if kept is None else kept[block.rows]) for block in blocks(store.position)]
    report = plan.report([packed.counts for packed in found])
    columns = zip(*(vars(packed.prompts).values() for packed in found), strict=True)
    before = np.cumsum([0, *(packed.counts.rows for packed in found)])
    rows = [packed.row + first for packed, first in zip(found, before, strict=False)]
    return report, Prompts(*map(np.concatenate, columns)), np.concatenate(rows).astype(np.int32)


def number_of(store: TokenStore) -> type[np.integer[Any]]:
    """The type of a row's number in plans of this log."""
    return np.int32 if len(store.position) < 2**31 else np.int64


def added(parts: Sequence[PlanCounts]) -> PlanCounts:
    """Counts of several parts as one."""
    return PlanCounts(*map(sum, zip(*(vars(part).values() for part in parts), strict=True)))


def blocks(position: NDArray[np.int32], first: int = 0, number: int = 0) -> Iterator[Block]:
    """Blocks of about BLOCK rows of a log that part no user's history: the first has that number, and begins at row
    ``first`` of a longer log."""
    begin = 0
    while begin < len(position):
        end = min(begin + BLOCK, len(position))
        while end < len(position) and position[end] != 0:  # a history is short beside a block
            end += 1
        yield Block(number, first + begin, first + end)
        number, begin = number + 1, end


def targets_per_prompt(config: Config, plan: str, paradigm: Paradigm) -> int | None:
    """k of a plan; None for "as many as a row holds". The baseline trains on k = 1, everything else being equal."""
    if plan in ("validation", "test"):
        return 1
    wanted = None if config.packing.targets == "all" else config.packing.targets
    return paradigm.targets(wanted) if plan == "train" else wanted


def _limits(packing: PackingConfig) -> str:
    share = [f"packing.target_share = {packing.target_share:g}"] if packing.target_share < 1 else []
    most = [f"packing.max_targets = {packing.max_targets}"] if packing.max_targets is not None else []
    return ", ".join(share + most)
