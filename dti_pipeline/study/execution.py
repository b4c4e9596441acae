"""Runs of a grid, each in a process of its own, several at a time where asked; what is done is not done again."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.packing.report import PlanReport
from dti_pipeline.paths import Paths
from dti_pipeline.plain import nearest
from dti_pipeline.study import log, rows
from dti_pipeline.study.grid import Grid, Run
from dti_pipeline.study.one import ROW, folder

Say = Callable[[str], None]


def chosen(grid: Grid, only: Iterable[str] = ()) -> tuple[Run, ...]:
    """The grid's runs, or those of the named groups. InputError names the nearest group."""
    only = tuple(only)
    for name in only:
        if name not in grid.group_names:
            raise InputError(
                f"{grid.path} has no group {name!r}: use one of {', '.join(grid.group_names)}"
                f"{nearest(name, grid.group_names)}"
            )
    return tuple(run for run in grid.runs if not only or set(only) & set(run.groups))


def prepare(grid: Grid, work: Path, runs: Iterable[Run], logs: Mapping[str, Path], home: Paths) -> None:
    """Tokens of every log that the runs need. ``logs`` says where raw logs lie that are not where the grid says."""
    done = rows.gather(grid, work)
    for name in dict.fromkeys(run.data_set for run in runs):
        log.prepare(grid, name, work, logs, home)
        now = log.digest(work / name)
        for row in done:
            if row["dataset"] == name and rows.data(row) not in (None, now):
                raise InputError(
                    f"{grid.beside(grid.results)} holds rows of {name} that come from other data ({rows.data(row)})"
                    f" than {work / name} ({now}): name another file, or remove those rows"
                )


def execute(
    grid: Grid, work: Path, runs: Iterable[Run], workers: int = 1, budget: float | None = None, say: Say = print
) -> int:
    """Train and judge what has no row yet; the results file is written anew after each run. How many runs failed.

    After ``budget`` seconds no run is started, and those that are running save and stop: the next call goes on with
    them, as it does after Ctrl-C or SIGTERM. A run that failed has a row with its error and is tried again next time.
    Runs that measure speed are made one at a time, with nothing beside them.
    """
    with artifacts.alone(work / "study"), _terminable():
        gathered = rows.gather(grid, work)
        done = {row["config"] for row in gathered if "error" not in row}
        session = _Session(grid, work, time.monotonic() + budget if budget else None, say)
        try:
            waiting = [run for run in runs if run.digest not in done]
            for measure, batch in groupby(waiting, lambda run: run.measure):
                session.all(list(batch), 1 if measure == "speed" else workers)
        finally:
            session.stop()
    if session.left_over:
        say(f"{session.left_over} runs are left: the same command goes on with them")
    return session.failed


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM is taken as Ctrl-C is: what runs is told to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Session:
    """The processes of one call."""

    def __init__(self, grid: Grid, work: Path, deadline: float | None, say: Say) -> None:
        self.failed = self.left_over = 0
        self._grid, self._work, self._deadline, self._say = grid, work, deadline, say
        self._running: set[subprocess.Popen[Any]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def all(self, runs: list[Run], workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            try:
                list(pool.map(lambda run: self._one(run, workers), runs))
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Ask what runs to save and end."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _one(self, run: Run, workers: int) -> None:
        own = folder(self._work, run)
        own.mkdir(parents=True, exist_ok=True)
        if rows.failed(own / ROW):  # one that a process of an earlier call has just finished stands
            (own / ROW).unlink()
        begun = time.monotonic()
        with (own / "log.txt").open("w") as output:
            process = self._start(run, workers, output)
            if process is not None:
                self._wait(process)
        with self._lock:
            if process is None or (self._stopped and process.returncode):
                self.left_over += 1
                return
            if process.returncode:
                self.failed += 1
                lines = (own / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
                error = (lines or [f"exit code {process.returncode}"])[-1][-500:]
                if process.returncode < 0:
                    error = f"killed by {signal.Signals(-process.returncode).name}: {error}"
                artifacts.write_json(own / ROW, run.facts() | {"error": error, "data": log.digest(own.parents[1])})
            gathered = rows.gather(self._grid, self._work)
            rows.write(self._grid, gathered)
            row = next(row for row in gathered if row["config"] == run.digest)
            self._say(f"{run.label():<76} {_found(row)} {time.monotonic() - begun:6.1f} s")

    def _start(self, run: Run, workers: int, output: Any) -> subprocess.Popen[Any] | None:
        with self._lock:
            if self._stopped or (self._deadline is not None and time.monotonic() >= self._deadline):
                return None
            words = ["-m", "dti_pipeline.study.one", self._grid.path, str(self._work), run.digest, str(workers)]
            # A session of its own: Ctrl-C reaches it through stop() alone, once.
            process = subprocess.Popen(
                [sys.executable, *words], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            self._running.add(process)
            return process

    def _wait(self, process: subprocess.Popen[Any]) -> None:
        while process.poll() is None:
            if self._deadline is not None and time.monotonic() >= self._deadline and not self._stopped:
                self.stop()
            time.sleep(0.05)
        with self._lock:
            self._running.discard(process)


def _found(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    parts = [f"AUC {row['auc']:.4f} streaming {row['auc_streaming']:.4f}"] if row.get("auc") is not None else []
    if row["measure"] == "validation" and row["validation_auc"] is not None:
        parts.append(f"validation AUC {row['validation_auc']:.4f}")
    return " ".join([*parts, f"{row['targets_per_second']:,.0f} targets/s"])


def listing(grid: Grid, work: Path, runs: Iterable[Run]) -> Iterator[dict[str, Any]]:
    """Each run with its state, and its cost by the packer, as `dti plan` counts it: targets, tokens, seconds.

    Tokens are None where the log is not prepared here; seconds are those that the fastest run of the same log, paradigm
    and model took a token (of several at a time each takes longer), None where none was measured.
    """
    gathered = {row["config"]: row for row in rows.gather(grid, work)}
    counted: dict[tuple[str, ...], PlanReport | None] = {}
    for run in runs:
        row = gathered.get(run.digest)
        key = (run.data_set, run.paradigm, run.packing_digest)
        if key not in counted:
            counted[key] = _counts(run, work / run.data_set)
        counts = counted[key]
        tokens = counts.tokens * run.config.training.epochs if counts else None
        pace = max(
            (
                other["tokens_per_second"]
                for other in gathered.values()
                if (other["dataset"], other["paradigm"], other["model"]) == (run.data_set, run.paradigm, run.model)
                and "error" not in other
            ),
            default=None,
        )
        yield {
            "state": "to do" if row is None else "failed" if "error" in row else "done",
            "run": run.label(),
            "group": ", ".join(run.groups),
            "config": run.digest,
            "targets": round(counts.targets * run.config.training.epochs) if counts else None,
            "tokens": round(tokens) if tokens else None,
            "seconds": round(tokens / pace, 1) if tokens and pace else None,
            "error": row.get("error") if row else None,
        }


def _counts(run: Run, home: Path) -> PlanReport | None:
    from dti_pipeline.packing.pack import plan_rows
    from dti_pipeline.packing.store import TokenStore

    tokens = Paths(home).tokens
    if not (tokens / artifacts.MANIFEST).is_file():
        return None
    return plan_rows(run.config, TokenStore.open(tokens), run.paradigm, "train")[0]
