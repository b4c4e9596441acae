"""What memory of its own does a training process need for the plan of a large log?

A made-up plan of --cases rows, with so many prompts each, is written, opened and walked: --steps optimizer steps of two
epochs, their rows assembled. ``parts`` is the training's own way (training/steps.py); ``whole`` is the way with arrays
of all rows: bounds, targets, order. Peak: what Python and numpy allocate, from opening on; pages of the memory-mapped
files are not in it, since the system takes them back. Each case is a process of its own, and so is the writing.

    python -m benchmarks.plan_memory --cases 1000000x10 10000000x10 100000000x1
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.harness import parser, publish
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import read_columns, uniform_store, write_columns
from dti_pipeline.training.steps import PART, Steps

USERS, INTERACTIONS, TOKENS = 1 << 18, 4, 10
TARGETS_PER_STEP, EPOCHS, SEED = 2048, 2, 0
MIB = 2**20


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cases", nargs="+", type=_case, default=[(1_000_000, 10)], metavar="ROWSxPROMPTS")
    options.add_argument("--steps", type=int, default=200, help="of each epoch, spread over it (default: %(default)s)")
    options.add_argument("--scratch", type=Path, help="folder with room for the plan (default: the system's)")
    given = options.parse_args()
    results = []
    for rows, prompts in given.cases:
        with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
            plan = Path(scratch) / "plan.arrow"
            _alone(write, plan, rows, prompts)
            for form in ("whole", "parts"):
                results.append(_alone(measure, plan, form, rows, prompts, given.steps))
    publish("plan_memory", results, given)


def _case(text: str) -> tuple[int, int]:
    rows, _, prompts = text.partition("x")
    try:
        return int(rows), int(prompts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1000000x10") from None


def _alone(function: Any, *arguments: Any) -> Any:
    """The function's result, from a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write(path: Path, rows: int, prompts: int) -> None:
    """A plan of ``rows`` rows of ``prompts`` prompts, each a history of three rows of context and one target."""
    user = np.arange(rows * prompts, dtype=np.int32) % USERS
    stop = (user + 1) * INTERACTIONS
    row = np.repeat(np.arange(rows, dtype=np.int32), prompts)
    write_columns(path, {"row": row, "start": user * INTERACTIONS, "first_target": stop - 1, "stop": stop})


def measure(path: Path, form: str, rows: int, prompts: int, steps: int) -> dict[str, Any]:
    """Open and walk the plan."""
    store = uniform_store(USERS, INTERACTIONS, TOKENS)
    length = prompts * (INTERACTIONS * TOKENS + 1)
    columns = read_columns(path)
    plan = Rows(store, length, *(columns[name] for name in ("start", "first_target", "stop", "row")))
    plan.assemble(plan.targets(np.array([0])) * 0)  # loops are compiled
    tracemalloc.start()
    begun = time.process_time()
    made = Steps(plan, TARGETS_PER_STEP, EPOCHS, SEED) if form == "parts" else Whole(columns)
    made[0]
    opened, held = time.process_time() - begun, tracemalloc.get_traced_memory()[0]
    begun = time.process_time()
    for number in np.linspace(0, made.count - 1, EPOCHS * steps).astype(int).tolist():
        plan.assemble(made[number].rows if form == "parts" else made[number])
    walked, peak = time.process_time() - begun, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "rows": rows,
        "prompts": rows * prompts,
        "form": form,
        "plan_mib": round(path.stat().st_size / MIB),
        "held_mib": round(held / MIB, 1),
        "peak_mib": round(peak / MIB, 1),
        "formula_mib": round(formula(form, rows, rows * prompts) / MIB, 1),
        "open_cpu_seconds": round(opened, 2),
        "walk_cpu_seconds": round(walked, 2),
    }


def formula(form: str, r: int, p: int) -> int:
    """Bytes at the peak, of ``r`` rows and ``p`` prompts whose spans are numbers of 32 bits.

    ``parts``: seven arrays of a part's rows. ``whole``: the targets of each prompt, as they are, widened and added up,
    beside the bounds; or six arrays of rows when they are drawn.
    """
    if form == "parts":
        return 7 * 8 * -(-r // -(-r // PART))
    return max(20 * p + 8 * r, 48 * r)


class Whole:
    """Steps drawn from arrays of all rows."""

    def __init__(self, columns: dict[str, Any]) -> None:
        row = columns["row"]
        self.bounds = np.searchsorted(row, np.arange(row[-1] + 2))
        before = np.concatenate([[0], np.cumsum(columns["stop"] - columns["first_target"])])
        self.targets = np.diff(before[self.bounds])
        self.steps = max(1, round(int(self.targets.sum()) / TARGETS_PER_STEP))
        self.count = EPOCHS * self.steps
        self._draw(0)

    def _draw(self, epoch: int) -> None:
        self.epoch = epoch
        self.order = np.random.default_rng([SEED, epoch]).permutation(len(self.targets))
        running = np.concatenate([[0], np.cumsum(self.targets[self.order])])
        self.cuts = np.arange(self.steps + 1) * len(self.order) // self.steps
        self.before = running[self.cuts]

    def __getitem__(self, number: int) -> np.ndarray:
        epoch, index = divmod(number, self.steps)
        if epoch != self.epoch:
            self._draw(epoch)
        return self.order[self.cuts[index] : self.cuts[index + 1]]


if __name__ == "__main__":
    main()
