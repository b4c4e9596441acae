"""Runs of a grid, each in a process of its own, several at a time where asked; finished runs are not repeated."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from dti_pipeline import artifacts, locks
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from experiments import analyse, logs
from experiments.grid import Grid, Run
from experiments.run import ROW, folder

Say = Callable[[str], None]


def prepare(grid: Grid, work: Path, runs: Iterable[Run], raw: Mapping[str, Path], home: Paths) -> list[str]:
    """Make the tokens of every log that the runs need; return their folders. ``raw`` as in :func:`logs.prepare`.
    InputError where the results hold rows of a log that come from other data."""
    done, where = analyse.gather(grid, work), grid.beside(grid.results) / analyse.ROWS
    wanted = {run.home: (run.data_set, run.delay) for run in runs}
    for name, (data_set, delay) in wanted.items():
        logs.prepare(grid, data_set, work, raw, home, delay)
        now = logs.digest(work / name)
        for row in done:
            if analyse.home(row) == name and row.get("data") not in (None, now):
                raise InputError(
                    f"{where} holds rows of {name} that come from other data ({row['data']})"
                    f" than {work / name} ({now}): name other results, or remove those rows"
                )
    return list(wanted)


def execute(
    grid: Grid, work: Path, runs: Iterable[Run], workers: int = 1, budget: float | None = None, say: Say = print
) -> int:
    """Train and evaluate runs without a row, write the results after each; return how many failed.

    After ``budget`` seconds no run is started and running ones save and stop: the next call goes on with them, as it
    does after Ctrl-C or SIGTERM. A failed run has a row with its error and is tried again by the next call. Runs that
    measure speed are made one at a time. Others are spread over the GPUs of this machine.
    """
    deadline = math.inf if budget is None else time.monotonic() + budget
    with locks.alone(work / "study"), _sigterm_as_ctrl_c():
        done = {row["config"] for row in analyse.gather(grid, work) if "error" not in row}
        waiting = [run for run in runs if run.digest not in done]
        failed = left = 0
        for measure, batch in groupby(waiting, lambda run: run.measure):
            found = _together(grid, work, batch, 1 if measure == "speed" else workers, deadline, say)
            failed, left = failed + found[0], left + found[1]
    if left:
        say(f"{left} runs are left: the same command goes on with them")
    return failed


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _together(grid: Grid, work: Path, runs: Iterable[Run], workers: int, deadline: float, say: Say) -> tuple[int, int]:
    """Make runs, ``workers`` at a time; how many failed, and how many the deadline left."""
    waiting, stopped, failed, left = deque(runs), False, 0, 0
    running: dict[subprocess.Popen[Any], tuple[Run, float, str]] = {}
    gpus = _gpus() if workers > 1 else []
    try:
        while waiting or running:
            if not stopped and time.monotonic() >= deadline:
                stopped, left = True, len(waiting)
                waiting.clear()
                for process in running:
                    process.terminate()
            while waiting and len(running) < workers:
                run, used = waiting.popleft(), [gpu for _, _, gpu in running.values()]
                gpu = min(gpus, key=used.count, default="")
                running[_start(grid, work, run, workers, gpu)] = run, time.monotonic(), gpu
            for process in [one for one in running if one.poll() is not None]:
                run, begun, _ = running.pop(process)
                if process.returncode and stopped:
                    left += 1
                    continue
                failed += bool(process.returncode)
                row = _finish(grid, work, run, process.returncode)
                say(f"{run.label():<76} {_found(row)} {time.monotonic() - begun:6.1f} s")
            time.sleep(0.05)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    return failed, left


def _gpus() -> list[str]:
    """The visible CUDA devices, as CUDA_VISIBLE_DEVICES names each."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


def _start(grid: Grid, work: Path, run: Run, workers: int, gpu: str = "") -> subprocess.Popen[Any]:
    """Start a run's process, which sees only the GPU that is named."""
    own = folder(work, run)
    own.mkdir(parents=True, exist_ok=True)
    row = own / ROW  # one that a process of an earlier call has just finished stands
    if row.is_file() and "error" in json.loads(row.read_text(encoding="utf-8")):
        row.unlink()
    words = [sys.executable, "-m", "experiments.run", grid.path, str(work), run.digest, str(workers)]
    with (own / "log.txt").open("w") as output:
        # A session of its own: Ctrl-C reaches it through terminate() alone, once.
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
        return subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=environment)


def _finish(grid: Grid, work: Path, run: Run, code: int) -> analyse.Row:
    """Write the results with the run's row, which holds its last line of output where it failed; return the row."""
    own = folder(work, run)
    if code:
        lines = (own / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        error = (lines or [f"exit code {code}"])[-1][-500:]
        if code < 0:
            error = f"killed by {signal.Signals(-code).name}: {error}"
        artifacts.write_json(own / ROW, run.facts() | {"error": error, "data": logs.digest(work / run.home)})
    gathered = analyse.gather(grid, work)
    analyse.save(grid, gathered)
    return next(row for row in gathered if row["config"] == run.digest)


def _found(row: analyse.Row) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    scores = ""
    if row.get("auc") is not None:
        scores = f"AUC {row['auc']:.4f} streaming {row['auc_streaming']:.4f} "
    elif row["measure"] == "validation" and row["validation_auc"] is not None:
        scores = f"validation AUC {row['validation_auc']:.4f} "
    return f"{scores}{row['targets_per_second']:,.0f} targets/s"


def listing(grid: Grid, work: Path, runs: Iterable[Run]) -> Iterator[dict[str, Any]]:
    """Each run with its state and its cost: tokens, None where the log is not prepared here, and seconds at the fastest
    speed measured on the same log, paradigm and model, None where none was; they hold for one run at a time."""
    gathered = {row["config"]: row for row in analyse.gather(grid, work)}
    speeds: dict[tuple[str, ...], float] = {}
    for row in gathered.values():
        if "error" not in row and row["tokens_per_second"]:
            key = (row["dataset"], row["paradigm"], row["model"])
            speeds[key] = max(speeds.get(key, 0.0), row["tokens_per_second"])
    counted: dict[tuple[str, ...], float | None] = {}  # tokens of an epoch
    for run in runs:
        found, plan = gathered.get(run.digest), (run.home, run.paradigm, run.packing_digest)
        if plan not in counted:
            counted[plan] = _tokens(run, Paths(work / run.home))
        each, speed = counted[plan], speeds.get((run.data_set, run.paradigm, run.model))
        tokens = round(each * run.config.training.epochs) if each else None
        yield {
            "state": "to do" if found is None else "failed" if "error" in found else "done",
            "run": run.label(),
            "group": ", ".join(run.groups),
            "config": run.digest,
            "tokens": tokens,
            "seconds": round(tokens / speed, 1) if tokens and speed else None,
            "error": (found or {}).get("error"),
        }


def _tokens(run: Run, paths: Paths) -> float | None:
    from dti_pipeline.packing.plans import plan_rows
    from dti_pipeline.packing.store import TokenStore
    from dti_pipeline.paradigms import named

    if not (paths.tokens / artifacts.MANIFEST).is_file():
        return None
    return plan_rows(run.config, TokenStore.open(paths.tokens), named(run.paradigm), "train")[0].tokens
