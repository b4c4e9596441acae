"""Row plans: which prompts make up each training row, and the prompts that held-out targets are scored in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.artifacts import Inputs
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.execution import tasks
from dti_pipeline.packing import row_length
from dti_pipeline.packing.plans import Block, Plan, added, blocks, number_of
from dti_pipeline.packing.report import PackedLoad, PackReport, PlanCounts, TokenizeReport
from dti_pipeline.packing.store import TokenStore, read_columns, require_events, write_columns, write_parts
from dti_pipeline.paradigms import named
from dti_pipeline.paths import Paths

LOADS_VERSION = 1  # of the code that packs a load; goes into its key
#: Plans in a shards folder. Held-out targets come in two forms: alone, as a server sees them, and streaming.
PLANS = ("train", "validation", "validation_streaming", "test", "test_streaming")


@dataclass(frozen=True)
class _Task:
    """A block to pack."""

    plan: Plan
    tokens: Path
    load: int
    block: Block
    kept: Path | None  # the targets (m,) that limits leave
    to: Path  # file of its prompts


def pack(config: Config, paths: Paths, paradigm: str) -> PackReport:
    """Plan the rows of one paradigm. Every target of the log is in exactly one prompt of its plan, or is counted as
    dropped with the reason. Plans hold spans of the log, never tokens. Raises InputError where the tokens are of other
    events than the home holds.

    Users are packed a block at a time, into rows of their own; each block is a task. Memory: that of a block. The rows
    of a load stand behind those of the one before; those that the shards hold already are not made again.
    """
    inputs = Inputs.published(tokens=(paths.tokens, "tokenize"))
    tokens = artifacts.read(paths.tokens, "tokenize", TokenizeReport, whole=False).report
    store = TokenStore.open(paths.tokens)
    require_events(paths)
    recorded = config.sections("packing", "split")
    sizes = [load.interactions for load in tokens.loads or ()] or [len(store.position)]
    sample = store.first(sizes[0])
    config = row_length.settled(config, sample)
    with (
        tasks.engine(config.execution),
        artifacts.publish(paths.shards(paradigm), "pack", recorded, inputs) as draft,
        artifacts.aside(paths.shards(paradigm)) as scratch,
    ):
        plans = [Plan.of(config, named(paradigm), name) for name in PLANS]
        keys = [_key(load.key, config, recorded) for load in tokens.loads or ()]
        before = _made_before(paths.shards(paradigm), keys, config)
        work = _tasks(plans, store, sizes, len(before), paths.tokens, scratch)
        counts = tasks.run(_packed, work, config.execution, "blocks of users packed")
        reports = {}
        for plan in plans:
            of_plan = [(task, found) for task, found in zip(work, counts, strict=True) if task.plan is plan]
            kept = [load.plans[plan.name] for load in before]
            reports[plan.name] = plan.report([*kept, *(found for _, found in of_plan)])
            columns = _columns(paths.shards(paradigm) / f"{plan.name}.arrow", kept, of_plan, number_of(store))
            write_parts(draft.path / f"{plan.name}.arrow", reports[plan.name].prompts, columns)
        made = [
            PackedLoad(key, {plan.name: _of_load(number, plan, work, counts) for plan in plans})
            for number, key in enumerate(keys)
            if number >= len(before)
        ]
        padding = reports["train"].padding_share if named(paradigm).streams else 0.0
        better = row_length.better(config, sample, padding)
        report = draft.report = PackReport(
            **vars(reports["train"]),
            paradigm=paradigm,
            context=config.packing.context,
            row_length=config.packing.tokens_a_row,
            plans=reports,
            advice=None if better is None else better.advice(padding),
            loads=None if tokens.loads is None else (*before, *made),
        )
    return report


def _key(load: str, config: Config, recorded: Mapping[str, Any]) -> str:
    """Digest of all that a load's rows are made of: its tokens, and with them those of the loads before it."""
    return artifacts.content_digest([LOADS_VERSION, load, recorded, config.packing.tokens_a_row])


def _made_before(shards: Path, keys: Sequence[str], config: Config) -> tuple[PackedLoad, ...]:
    """Loads that a folder of shards holds, where they are the first of these; none where limits choose targets of the
    whole log."""
    if not keys or config.packing.target_share < 1 or config.packing.max_targets is not None:
        return ()
    with suppress(InputError):
        found = artifacts.read(shards, "pack", PackReport).report.loads or ()
        return found if [load.key for load in found] == [*keys[: len(found)]] else ()
    return ()


def _tasks(
    plans: Sequence[Plan], store: TokenStore, sizes: Sequence[int], done: int, tokens: Path, folder: Path
) -> list[_Task]:
    """The blocks to pack of each plan; the first ``done`` loads are."""
    of_loads: list[tuple[int, Block]] = []
    for load, (first, stop) in enumerate(pairwise(np.cumsum([0, *sizes]).tolist())):
        of_loads += [(load, block) for block in blocks(store.position[first:stop], first, len(of_loads))]
    work = []
    for plan in plans:
        limited = plan.limited(store)
        kept = None
        if limited is not None:
            kept = folder / f"{plan.name}.kept.arrow"
            write_columns(kept, {"kept": limited.view(np.int8)})
        work += [
            _Task(plan, tokens, load, block, kept, folder / f"{plan.name}.{block.number}.arrow")
            for load, block in of_loads
            if load >= done
        ]
    return work


def _packed(task: _Task) -> PlanCounts:
    store = TokenStore.open(task.tokens, whole=False)
    kept = None if task.kept is None else read_columns(task.kept)["kept"].view(bool)[task.block.rows]
    prompts, row, counts = task.plan.pack(store, task.block, kept)
    spans = {"start": prompts.start, "first_target": prompts.first_target, "stop": prompts.stop}
    write_columns(task.to, {"row": row.astype(np.int32), **spans})
    return counts


def _of_load(number: int, plan: Plan, work: Sequence[_Task], counts: Sequence[PlanCounts]) -> PlanCounts:
    """What one load has of a plan; nothing where it has no rows."""
    found = [count for task, count in zip(work, counts, strict=True) if task.load == number and task.plan is plan]
    return added(found) if found else PlanCounts(0, 0, 0, 0, 0, 0)


def _columns(
    before: Path, kept: Sequence[PlanCounts], made: Sequence[tuple[_Task, PlanCounts]], number: type[np.integer[Any]]
) -> Iterator[dict[str, NDArray[Any]]]:
    """The prompts of the loads that were there, and of each block, with rows counted from the first on."""
    rows = sum(count.rows for count in kept)
    if kept:
        # A log may have outgrown the numbers of its rows since.
        columns = read_columns(before)
        yield {name: values if name == "row" else values.astype(number, copy=False) for name, values in columns.items()}
    for task, count in made:
        columns = read_columns(task.to)
        yield {**columns, "row": columns["row"] + np.int32(rows)}
        rows += count.rows
