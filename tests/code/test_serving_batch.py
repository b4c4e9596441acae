"""`dti score --batch`: every request has its answer, a bad one its error, and what was answered is not asked again."""

from __future__ import annotations

import csv
import json
import os
import threading
import tracemalloc
from collections.abc import Sequence
from multiprocessing.popen_fork import Popen
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dti_pipeline.cli import app
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.execution import tasks
from dti_pipeline.paths import Paths
from dti_pipeline.serving import batch
from dti_pipeline.serving.batch import Task, score_batch
from dti_pipeline.serving.requests import Request
from dti_pipeline.serving.scorer import Scored, Scorer
from tests.small_models import questions, train

pytestmark = pytest.mark.slow  # whole stages: `make test` runs them


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = Paths(tmp_path_factory.mktemp("home"))
    train(paths, ("dti", "dti_isolated"), tokens={"template": "{item_text} ({item_id})"})
    return paths


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need not import for seconds and have what a test has patched, made one after the other.

    One that is forked while another is being made holds that one's pipes, and its death is not seen.
    """
    make, one = Popen._launch, threading.Lock()

    def alone(self: Popen, process: Any) -> None:
        with one:
            make(self, process)

    monkeypatch.setattr(Popen, "_launch", alone)
    monkeypatch.setattr(tasks, "START", "fork")


@pytest.fixture(scope="module")
def scorer(trained: Paths) -> Scorer:
    return Scorer.load(trained.model("dti"))


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PART", 5)


def write(path: Path, asked: Sequence[Any]) -> Path:
    """Requests as a file of the form that its name says; a text stands for itself where the form has lines."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(asked)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as handle:
            table = csv.writer(handle)
            table.writerow(["user_id", "history", "candidates", "of another system"])
            for one in asked:
                table.writerow([one["user_id"], json.dumps(one["history"]), json.dumps(one["candidates"]), "x"])
    else:
        path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in asked))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("source", "out"), [("r.jsonl", "a.jsonl"), ("r.csv", "a.parquet"), ("r.parquet", "a.parquet")]
)
def test_a_batch_has_the_answer_of_each_request_alone(
    trained: Paths, scorer: Scorer, tmp_path: Path, source: str, out: str
) -> None:
    asked = questions(23, fewest=0)
    report = score_batch(Task(write(tmp_path / source, asked), trained.model("dti"), tmp_path / out))
    answers = read(tmp_path / out)
    assert [answer["user_id"] for answer in answers] == [one["user_id"] for one in asked]
    for one, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer["probabilities"], scorer.score([one])[0], rtol=0, atol=1e-6)
    assert (report.requests, report.refused, report.kept) == (23, 0, 0)
    assert report.candidates == sum(len(one["candidates"]) for one in asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source, out])


BAD = {
    2: ("{", "line 3 is not JSON"),
    7: ('{"history": []}', "line 8 key candidates is missing"),
    11: ('{"history": [], "candidates": [{"item_text": "a title"}]}', "line 12: the item 'a title' has no item_id"),
    12: ('{"user_id": [7], "history": [], "candidates": []}', "line 13 key user_id must be"),
}


@pytest.mark.parametrize("out", ["a.jsonl", "a.parquet"])
def test_a_bad_request_is_named_and_counted_and_costs_no_other(
    trained: Paths, scorer: Scorer, tmp_path: Path, out: str
) -> None:
    good = questions(14, fewest=0)
    source = write(tmp_path / "r.jsonl", [BAD[i][0] if i in BAD else one for i, one in enumerate(good)])
    command = ["score", str(source), "--model", str(trained.model("dti")), "--batch", "--out", str(tmp_path / out)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "4 of 14 requests were refused" in " ".join(done.stderr.split())
    assert f"{source} line 3 is not JSON" in " ".join(done.stderr.split())
    answers = read(tmp_path / out)
    assert len(answers) == 14
    for i, answer in enumerate(answers):
        if i in BAD:
            assert answer["error"].startswith(f"{source} {BAD[i][1]}")
            assert not answer.get("probabilities")
        else:
            assert answer.get("error") is None
            np.testing.assert_allclose(answer["probabilities"], scorer.score([good[i]])[0], rtol=0, atol=1e-6)


def test_bad_rows_of_a_table_are_named_too(trained: Paths, tmp_path: Path) -> None:
    source = tmp_path / "r.csv"
    good = '"[{""item_id"": 1, ""label"": 1}]","[{""item_id"": 2}]"'
    source.write_text(f"history,candidates\n{good}\n{good},3\n[,[]\n{good}\n,[]\n")
    with pytest.raises(CheckFailed, match="3 of 5 requests"):
        score_batch(Task(source, trained.model("dti"), tmp_path / "a.jsonl"))
    answers = read(tmp_path / "a.jsonl")
    np.testing.assert_allclose(answers[0]["probabilities"], answers[3]["probabilities"], rtol=0, atol=1e-6)
    assert [answer["error"].removeprefix(f"{source} ") for answer in answers if "error" in answer] == [
        "row 2 has 3 cells, where the file has 2 columns",
        "row 3 key history is not JSON: Expecting value at column 2",
        "row 5 key history is missing",
    ]


def test_a_run_that_ended_early_goes_on_where_it_ended(
    trained: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = questions(23, fewest=0)
    source, out, whole = write(tmp_path / "r.jsonl", asked), tmp_path / "a.jsonl", tmp_path / "whole.jsonl"
    score_batch(Task(source, trained.model("dti"), whole))
    real, scored = Scorer.score_each, []

    def failing(self: Scorer, part: Sequence[Request]) -> Any:
        if len(scored) == 2:
            raise MemoryError
        scored.append(len(part))
        return real(self, part)

    monkeypatch.setattr(Scorer, "score_each", failing)
    with pytest.raises(MemoryError):
        score_batch(Task(source, trained.model("dti"), out))
    assert not out.exists()

    def counted(self: Scorer, part: Sequence[Request]) -> Any:
        scored.append(len(part))
        return real(self, part)

    monkeypatch.setattr(Scorer, "score_each", counted)
    heard: list[int] = []
    report = score_batch(Task(source, trained.model("dti"), out), heard.append)
    assert scored == [5, 5, 5, 5, 3]  # none twice
    assert heard == [5, 5, 5, 5, 3]
    assert (report.requests, report.kept) == (23, 10)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("change", ["requests", "model"])
def test_what_an_earlier_run_made_of_anything_else_is_not_used(
    trained: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    asked = questions(12, fewest=0)
    source, out = write(tmp_path / "r.jsonl", asked), tmp_path / "a.jsonl"
    real = Scorer.score_each
    failing = iter([None])

    def once(self: Scorer, part: Sequence[Request]) -> Any:
        next(failing)
        return real(self, part)

    monkeypatch.setattr(Scorer, "score_each", once)
    with pytest.raises(RuntimeError, match="StopIteration"):
        score_batch(Task(source, trained.model("dti"), out))
    monkeypatch.setattr(Scorer, "score_each", real)
    asked = questions(13, fewest=0)[1:] if change == "requests" else asked
    write(source, asked)
    model = trained.model("dti_isolated" if change == "model" else "dti")
    assert score_batch(Task(source, model, out)).kept == 0
    scorer = Scorer.load(model)
    for one, answer in zip(asked, read(out), strict=True):
        np.testing.assert_allclose(answer["probabilities"], scorer.score([one])[0], rtol=0, atol=1e-6)


def test_memory_does_not_grow_with_the_requests(
    trained: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Half:
        def score_each(self, asked: Sequence[Request]) -> list[Scored]:
            return [Scored([0.5] * len(one.candidates)) for one in asked]

    monkeypatch.setattr(batch, "PART", 50)
    monkeypatch.setattr(Scorer, "load", lambda *_, **__: Half())
    peaks = []
    for count in (100, 200, 1600):  # the first one also pays for what is made once
        source = write(tmp_path / "r.jsonl", questions(50, fewest=0) * (count // 50))
        tracemalloc.start()
        report = score_batch(Task(source, trained.model("dti"), tmp_path / "a.jsonl"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert report.requests == count
    assert peaks[2] < 1.5 * peaks[1]


def test_a_file_that_cannot_be_read_as_a_whole_is_one_sentence(trained: Paths, tmp_path: Path) -> None:
    model, out = trained.model("dti"), tmp_path / "a.jsonl"
    cases = {
        "none.jsonl": (None, "does not exist"),
        "no.parquet": ("no parquet", "is not a whole Parquet file"),
        "no.csv": ("history\n[]\n", "has no column candidates"),
        "twice.csv": ("history,history,candidates\n[],[],[]\n", "has column history twice"),
        "open.csv": ('history,candidates\n"[]', "is not CSV: unexpected end of data"),
        "-": (None, "standard input"),
    }
    for name, (text, says) in cases.items():
        source = Path(name) if name == "-" else tmp_path / name
        if text is not None:
            source.write_text(text)
        with pytest.raises(InputError, match=says):
            score_batch(Task(source, model, out))
        assert not [path for path in tmp_path.iterdir() if "a.jsonl" in path.name]
    for words, says in ((["--batch"], "name it by --out"), (["--workers", "2"], "--workers is for --batch")):
        done = CliRunner().invoke(app, ["score", "r.jsonl", "--model", str(model), *words])
        assert done.exit_code == 2
        assert says in " ".join(done.stderr.split())


@pytest.mark.usefixtures("forked")
def test_several_processes_answer_the_same(trained: Paths, tmp_path: Path) -> None:
    source = write(tmp_path / "r.jsonl", [*questions(12, fewest=0), "{"])
    for workers in (1, 2):
        with pytest.raises(CheckFailed, match="1 of 13 requests were refused"):
            score_batch(Task(source, trained.model("dti"), tmp_path / f"{workers}.jsonl", workers))
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    with pytest.raises(InputError, match="item states depend on histories"):
        score_batch(Task(source, trained.model("dti"), tmp_path / "3.jsonl", 2, cache_items=True))


@pytest.mark.usefixtures("forked")
def test_a_process_that_is_killed_costs_its_part_another_attempt(
    trained: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, real, killed = write(tmp_path / "r.jsonl", questions(12, fewest=0)), batch.answer_part, tmp_path / "killed"

    def fatal(scorer: Scorer, part: Any, path: Path) -> None:
        if path.name.startswith("000000001") and (path.parent == forever or not killed.exists()):
            killed.touch()
            os._exit(9)
        real(scorer, part, path)

    forever = tmp_path / ".never.jsonl.parts"
    monkeypatch.setattr(batch, "answer_part", fatal)
    for name in ("whole", "never", "whole2"):
        task = Task(source, trained.model("dti"), tmp_path / f"{name}.jsonl", 2)
        if name == "never":
            with pytest.raises(CheckFailed, match="goes on where it ended"):
                score_batch(task)
            assert not task.out.exists()
        else:
            assert score_batch(task).requests == 12
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "whole2.jsonl").read_bytes()
