"""Row plans: which prompts make up each training row, and the prompts that held-out targets are scored in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.artifacts import Inputs
from dti_pipeline.config import Config
from dti_pipeline.execution import tasks
from dti_pipeline.packing import row_length
from dti_pipeline.packing.plans import Block, Counts, Plan, blocks
from dti_pipeline.packing.report import PackReport
from dti_pipeline.packing.store import TokenStore, read_columns, require_events, write_columns, write_parts
from dti_pipeline.paradigms import named
from dti_pipeline.paths import Paths

#: Plans in a shards folder. Held-out targets come in two forms: alone, as a server sees them, and streaming.
PLANS = ("train", "validation", "validation_streaming", "test", "test_streaming")


@dataclass(frozen=True)
class _Task:
    """A block to pack."""

    plan: Plan
    tokens: Path
    block: Block
    kept: Path | None  # the targets (m,) that limits leave
    to: Path  # file of its prompts


def pack(config: Config, paths: Paths, paradigm: str) -> PackReport:
    """Plan the rows of one paradigm. Every target of the log is in exactly one prompt of its plan, or is counted as
    dropped with the reason. Plans hold spans of the log, never tokens. Raises InputError where the tokens are of other
    events than the home holds.

    Users are packed a block at a time, into rows of their own; each block is a task. Memory: that of a block.
    """
    inputs = Inputs.published(tokens=(paths.tokens, "tokenize"))
    store = TokenStore.open(paths.tokens)
    require_events(paths)
    recorded = config.sections("packing", "split")
    config = row_length.settled(config, store)
    with (
        tasks.engine(config.execution),
        artifacts.publish(paths.shards(paradigm), "pack", recorded, inputs) as draft,
        artifacts.aside(paths.shards(paradigm)) as scratch,
    ):
        work = {
            plan.name: _tasks(plan, store, paths.tokens, scratch)
            for plan in (Plan.of(config, named(paradigm), name) for name in PLANS)
        }
        counts = iter(tasks.run(_packed, [*chain(*work.values())], config.execution, "blocks of users packed"))
        plans = {}
        for name, blocks_of_plan in work.items():
            found = [*islice(counts, len(blocks_of_plan))]
            plans[name] = blocks_of_plan[0].plan.report(found)
            write_parts(draft.path / f"{name}.arrow", plans[name].prompts, _columns(blocks_of_plan, found))
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


def _tasks(plan: Plan, store: TokenStore, tokens: Path, folder: Path) -> list[_Task]:
    limited = plan.limited(store)
    kept = None
    if limited is not None:
        kept = folder / f"{plan.name}.kept.arrow"
        write_columns(kept, {"kept": limited.view(np.int8)})
    return [
        _Task(plan, tokens, block, kept, folder / f"{plan.name}.{block.number}.arrow")
        for block in blocks(store.position)
    ]


def _packed(task: _Task) -> Counts:
    store = TokenStore.open(task.tokens, whole=False)
    kept = None if task.kept is None else read_columns(task.kept)["kept"].view(bool)[task.block.rows]
    prompts, row, counts = task.plan.pack(store, task.block, kept)
    spans = {"start": prompts.start, "first_target": prompts.first_target, "stop": prompts.stop}
    write_columns(task.to, {"row": row.astype(np.int32), **spans})
    return counts


def _columns(work: Sequence[_Task], counts: Sequence[Counts]) -> Iterator[dict[str, NDArray[Any]]]:
    """The prompts of each block, with rows counted from the first block's."""
    rows = 0
    for task, count in zip(work, counts, strict=True):
        columns = read_columns(task.to)
        yield {**columns, "row": columns["row"] + np.int32(rows)}
        rows += count.rows
