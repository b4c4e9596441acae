"""``dti score --batch``: a file of any number of requests, in parts that are kept.

A second call goes on where the first one ended. Each request has its answer, a bad one its error; memory does not grow
with their number.
"""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from dti_pipeline import artifacts, locks
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.execution import tasks
from dti_pipeline.serving import requests, score
from dti_pipeline.serving.requests import Raw, Request
from dti_pipeline.serving.score import ANSWERS, CHUNK, ScoreReport
from dti_pipeline.serving.scorer import Scored, Scorer

#: Requests of a part: what is lost when a run ends early.
PART = 2048
WITH_ERRORS = ANSWERS.append(pa.field("error", pa.string()))
RETRIES = 2  # of a part whose process has died
#: Hears of requests that are answered: how many more.
Heard = Callable[[int], None]


@dataclass(frozen=True)
class BatchReport(ScoreReport):
    """A file of requests, bad ones among them."""

    refused: int  # answered by their error
    first_refused: str | None  # its sentence
    kept: int  # requests whose answers an earlier run had made; the pace is of the others


@dataclass(frozen=True)
class Task:
    """What a batch run is asked for."""

    source: Path
    model: Path
    out: Path  # Parquet by its ending, else JSONL
    workers: int = 1
    cache_items: bool = False


def score_batch(task: Task, heard: Heard = lambda _: None) -> BatchReport:
    """Answer every request of a file, in order, in ``out``, which is written whole or not at all.

    An answer is that of :func:`score.score_file`, or ``{"error": ..}``, which names file, line and key. Parts lie in a
    folder beside ``out`` until all are there; they are used again if requests, model and form are the same. Memory: one
    part of each worker, whatever the file holds. Raises CheckFailed, once ``out`` is written, where requests were
    refused; InputError where the file as a whole cannot be read.
    """
    start = time.perf_counter()
    if str(task.source) == "-":
        raise InputError("--batch reads a file: standard input cannot be read again from where a run ended")
    if not task.out.parent.is_dir():
        raise InputError(f"{task.out} cannot be written: {task.out.parent} is no folder")
    manifest = artifacts.read(task.model, "train")
    folder, whose = task.out.with_name(f".{task.out.name}.parts"), _identity(task)
    with locks.alone(folder / "parts"):
        _begin(folder, whose)
        done = {path.name for path in folder.iterdir()}
        parts = _Parts(task, folder)
        new: set[Path] = set()

        def jobs() -> Iterator[_Job]:
            for number, part in enumerate(_parts(requests.raw(task.source))):
                path = parts.path(number)
                if path.name in done:
                    heard(len(part))
                else:
                    new.add(path)
                    yield _Job(part, path)

        try:
            for _, count in tasks.stream(
                partial(_answered, task), jobs(), task.workers, RETRIES, _ended, _begin_process
            ):
                heard(count)
        except InputError:  # of the file or the model: there is nothing to go on with
            shutil.rmtree(folder)
            raise
        finally:
            _loaded.clear()
        found = parts.joined(new)
        shutil.rmtree(folder)
    seconds = time.perf_counter() - start
    report = BatchReport(
        model=str(task.model),
        paradigm=manifest.report["network"]["paradigm"],
        requests=found.requests,
        candidates=found.candidates,
        seconds=round(seconds, 3),
        candidates_per_second=round(found.new_candidates / seconds, 1),
        out=str(task.out),
        refused=found.refused,
        first_refused=found.first_refused,
        kept=found.requests - found.new,
    )
    if report.refused:
        raise CheckFailed(
            f"{report.refused:,} of {report.requests:,} requests were refused, each answered by its error in"
            f" {task.out}; the first: {report.first_refused}",
            report,
        )
    return report


def _identity(task: Task) -> dict[str, Any]:
    """What an answer depends on."""
    return {
        "requests": artifacts.digest(task.source),
        "model": artifacts.file_digest(task.model / artifacts.MANIFEST),
        "name": str(task.source),  # errors name it
        "part": PART,
        "cache_items": task.cache_items,
    }


def _begin(folder: Path, whose: dict[str, Any]) -> None:
    """Clear the folder of parts of anything else."""
    told = folder / "of.json"
    if not told.is_file() or json.loads(told.read_text()) != whose:
        for path in folder.iterdir():
            if path.name != ".parts.lock":
                path.unlink()
        artifacts.write_json(told, whose)


def _parts(lines: Iterator[Raw]) -> Iterator[list[Raw]]:
    while part := list(itertools.islice(lines, PART)):
        yield part


def answer_part(scorer: Scorer, part: Iterable[Raw], path: Path) -> None:
    """Answer the requests of a part, in order, in the file ``path``, whole or not at all."""
    parsed = [_parsed(one) for one in part]
    good = (one for one in parsed if isinstance(one, Request))
    found = (one for chunk in requests.chunks(good, CHUNK) for one in scorer.score_each(chunk))
    with score.answers(path, schema=WITH_ERRORS) as write:
        write([_answer(one, next(found)) if isinstance(one, Request) else {"error": str(one)} for one in parsed])


def _parsed(line: Raw) -> Request | InputError:
    try:
        return line.parse()
    except InputError as error:
        return error


def _answer(request: Request, found: Scored | InputError) -> score.Answer:
    if isinstance(found, InputError):
        # What a model lacks in an item is said of the item: the line is added.
        said = str(found)
        return {"error": said if said.startswith(request.where) else f"{request.where}: {said}"}
    return score.answer(request, found.probabilities)


class _Parts:
    """The files of a batch run."""

    def __init__(self, task: Task, folder: Path) -> None:
        self._task, self._folder = task, folder
        self._ending = ".parquet" if task.out.suffix == ".parquet" else ".jsonl"

    def path(self, number: int) -> Path:
        return self._folder / f"{number:09}{self._ending}"

    def joined(self, new: set[Path]) -> _Found:
        """Write ``out`` from all parts, and count what is in them."""
        found = _Found()
        paths = sorted(self._folder.glob(f"*{self._ending}"))
        with score.whole(self._task.out) as aside:
            if self._ending == ".parquet":
                with pq.ParquetWriter(aside, WITH_ERRORS) as writer:
                    for path in paths:
                        table = pq.read_table(path)
                        found.add(table.to_pylist(), path in new)
                        writer.write_table(table)
            else:
                with aside.open("wb") as handle:
                    for path in paths:
                        lines = path.read_bytes()
                        found.add(map(json.loads, lines.splitlines()), path in new)
                        handle.write(lines)
        return found


@dataclass
class _Found:
    requests: int = 0
    new: int = 0
    candidates: int = 0
    new_candidates: int = 0
    refused: int = 0
    first_refused: str | None = None

    def add(self, answers: Iterable[dict[str, Any]], new: bool) -> None:
        for answer in answers:
            candidates = len(answer.get("probabilities") or ())
            self.requests += 1
            self.candidates += candidates
            if new:
                self.new += 1
                self.new_candidates += candidates
            if answer.get("error") is not None:
                self.refused += 1
                self.first_refused = self.first_refused or answer["error"]


class _Job(NamedTuple):
    """A part, and the file of its answers."""

    part: list[Raw]
    path: Path


#: Of this process: its worker's number where it is one of several, and the model that it has loaded.
_worker: list[int] = []
_loaded: dict[Task, Scorer] = {}


def _begin_process(number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    _worker.append(number)


def _answered(task: Task, job: _Job) -> int:
    """Answer a part by the model of this process, which has a GPU of its own where there are enough."""
    if task not in _loaded:
        device = "auto"
        if _worker:
            gpus = torch.cuda.device_count()
            torch.set_num_threads(max(1, torch.get_num_threads() // task.workers))
            device = f"cuda:{_worker[0] % gpus}" if gpus else "cpu"
        _loaded[task] = Scorer.load(task.model, device, task.cache_items)
    answer_part(_loaded[task], *job)
    return len(job.part)


def _ended(number: int) -> CheckFailed:
    return CheckFailed(
        "a process of --workers was ended again and again, perhaps for want of memory: the same command goes on where"
        " it ended"
    )
