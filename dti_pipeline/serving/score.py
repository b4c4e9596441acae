"""``dti score``: probabilities for a file of requests, or for a stream of them line by line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.serving import requests
from dti_pipeline.serving.requests import Request
from dti_pipeline.serving.scorer import Scorer

#: Candidates scored together: enough for full rows and batches, few enough for memory.
CHUNK = 4096
ANSWERS = pa.schema([("user_id", pa.string()), ("probabilities", pa.list_(pa.float64()))])


@dataclass(frozen=True)
class Answered:
    """Requests that a model has answered."""

    model: str  # folder
    paradigm: str
    requests: int


@dataclass(frozen=True)
class ScoreReport(Answered):
    """A file of requests."""

    candidates: int
    seconds: float
    candidates_per_second: float
    out: str | None  # file of the answers; None: standard output


Write = Callable[[Sequence[Request], Sequence[Sequence[float]]], None]


def score_file(source: Path, scorer: Scorer, out: Path | None, stdout: IO[bytes]) -> ScoreReport:
    """Score every request of a file, in order; answers go to ``out``, or to ``stdout`` as they are made.

    An answer is ``{"user_id": .., "probabilities": [..]}``, one probability for each candidate in the request's order.
    ``out`` is Parquet by its ending, else JSONL, and is written whole or not at all. Raises InputError that names the
    file, line and key. Memory: ``CHUNK`` candidates at a time.
    """
    start = time.perf_counter()
    answered = candidates = 0
    with _answers(out, stdout) as write:
        for chunk in requests.chunks(requests.read(source), CHUNK):
            scores = scorer.score(chunk)
            write(chunk, scores)
            answered += len(chunk)
            candidates += sum(map(len, scores))
    seconds = time.perf_counter() - start
    return ScoreReport(
        model=str(scorer.manifest.path),
        paradigm=scorer.model.paradigm.name,
        requests=answered,
        candidates=candidates,
        seconds=round(seconds, 3),
        candidates_per_second=round(candidates / seconds, 1),
        out=None if out is None else str(out),
    )


def score_stream(source: IO[bytes], scorer: Scorer, stdout: IO[bytes]) -> Answered:
    """Score each line when it comes, as a service. A line that is no request is answered with ``{"error": ..}``.

    Raises CheckFailed at the end of the stream where there were such lines.
    """
    answered = refused = 0
    for number, line in enumerate(source, 1):
        try:
            request = requests.parse_line(line, f"line {number}")
            answer = _answer(request, scorer.score([request])[0])
            answered += 1
        except InputError as error:
            answer = {"error": str(error)}
            refused += 1
        stdout.write(_line(answer))
        stdout.flush()
    if refused:
        raise CheckFailed(f"{refused} of {refused + answered} lines were no requests: each was answered by its error")
    return Answered(str(scorer.manifest.path), scorer.model.paradigm.name, answered)


def _answer(request: Request, probabilities: Sequence[float]) -> dict[str, Any]:
    user = {} if request.user_id is None else {"user_id": request.user_id}
    return user | {"probabilities": list(probabilities)}


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode() + b"\n"


@contextmanager
def _answers(out: Path | None, stdout: IO[bytes]) -> Iterator[Write]:
    """The function that writes answers. A file is written under a temporary name and renamed when it is complete."""
    if out is None:
        yield _lines_to(stdout)
        stdout.flush()
        return
    if not out.parent.is_dir():
        raise InputError(f"{out} cannot be written: {out.parent} is no folder")
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.suffix == ".parquet":
            with pq.ParquetWriter(aside, ANSWERS) as writer:
                yield _rows_to(writer)
        else:
            with aside.open("wb") as handle:
                yield _lines_to(handle)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


def _lines_to(handle: IO[bytes]) -> Write:
    def write(chunk: Sequence[Request], scores: Sequence[Sequence[float]]) -> None:
        handle.writelines(_line(_answer(*pair)) for pair in zip(chunk, scores, strict=True))

    return write


def _rows_to(writer: pq.ParquetWriter) -> Write:
    def write(chunk: Sequence[Request], scores: Sequence[Sequence[float]]) -> None:
        users = [None if r.user_id is None else str(r.user_id) for r in chunk]
        writer.write_table(pa.table({"user_id": users, "probabilities": scores}, schema=ANSWERS))

    return write
