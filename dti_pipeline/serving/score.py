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
Answer = dict[str, Any]


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


def score_file(source: Path, scorer: Scorer, out: Path | None, stdout: IO[bytes]) -> ScoreReport:
    """Score every request of a file, in order; answers go to ``out``, or to ``stdout`` as they are made.

    An answer is ``{"user_id": .., "probabilities": [..]}``, in the order of its candidates. ``out`` is Parquet by its
    ending, else JSONL, and is written whole or not at all. Raises InputError that names the file, line and key.
    """
    start = time.perf_counter()
    answered = candidates = 0
    with answers(out, stdout) as write:
        for chunk in requests.chunks(requests.read(source), CHUNK):
            scores = scorer.score(chunk)
            write([answer(*pair) for pair in zip(chunk, scores, strict=True)])
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
    """Score each line when it comes, as a service. A line that is no request is answered with ``{"error": ..}``, and
    raises CheckFailed at the end of the stream."""
    answered = refused = 0
    for number, text in enumerate(requests.lines(source), 1):
        try:
            request = requests.parse_line(text, f"line {number}")
            found = answer(request, scorer.score([request])[0])
            answered += 1
        except InputError as error:
            found = {"error": str(error)}
            refused += 1
        stdout.write(line(found))
        stdout.flush()
    if refused:
        raise CheckFailed(f"{refused} of {refused + answered} lines were no requests: each was answered by its error")
    return Answered(str(scorer.manifest.path), scorer.model.paradigm.name, answered)


def answer(request: Request, probabilities: Sequence[float]) -> Answer:
    """What a request is answered with, probabilities in the order of its candidates."""
    user = {} if request.user_id is None else {"user_id": request.user_id}
    return user | {"probabilities": list(probabilities)}


def line(answer: Answer) -> bytes:
    """An answer as a line of JSON."""
    # A key of a refused request may hold half a character, which JSON has an escape for.
    return json.dumps(answer, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _table(answers: list[Answer], schema: pa.Schema) -> pa.Table:
    columns = {name: [answer.get(name) for answer in answers] for name in schema.names}
    columns["user_id"] = [None if user is None else str(user) for user in columns["user_id"]]
    return pa.table(columns, schema=schema)


@contextmanager
def answers(
    out: Path | None, stdout: IO[bytes] | None = None, schema: pa.Schema = ANSWERS
) -> Iterator[Callable[[list[Answer]], None]]:
    """The function that writes answers, to ``stdout`` where there is no file."""
    if out is None:
        assert stdout is not None
        yield lambda answers: stdout.writelines(map(line, answers))
        stdout.flush()
        return
    with whole(out) as aside:
        if out.suffix == ".parquet":
            with pq.ParquetWriter(aside, schema) as writer:
                yield lambda answers: writer.write_table(_table(answers, schema))
        else:
            with aside.open("wb") as handle:
                yield lambda answers: handle.writelines(map(line, answers))


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A temporary name, under which a file is written that takes the place of ``out`` when it is complete."""
    if not out.parent.is_dir():
        raise InputError(f"{out} cannot be written: {out.parent} is no folder")
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        yield aside
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
