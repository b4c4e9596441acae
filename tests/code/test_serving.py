"""Scoring requests: what a server answers is what the evaluation measured, and a bad file gets one sentence."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModelContext
from typer.testing import CliRunner

from dti_pipeline import pipeline
from dti_pipeline.cli import app
from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.modeling.network.scoring import padded_height
from dti_pipeline.packing.report import Knowledge
from dti_pipeline.paths import Paths
from dti_pipeline.serving import requests, score
from dti_pipeline.serving.requests import Item, Request
from dti_pipeline.serving.scorer import Scorer
from dti_pipeline.tracking.served_model import CandidateScorer

CONTEXT = 6
PARAMS: dict[str, Any] = {
    "synth": {"users": 40, "items": 60, "interactions_per_user": 25, "defects": 0},
    "validation": {"min_rows": 100},
    "tokens": {"template": "{item_text} ({item_id})", "max_text_tokens": 6},
    "packing": {"context": CONTEXT, "targets": 8, "row_length": 256},
    "model": {"hidden_size": 32, "heads": 2, "kv_heads": 2, "intermediate_size": 48},
    "training": {
        "epochs": 0.5,
        "evaluations": 0,
        "targets_per_step": 32,
        "tokens_per_batch": 1024,
        "warmup_share": 0.0,
    },
    "evaluation": {"bootstrap_samples": 5},
    "tracking": {"enabled": False},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home with small models of two paradigms, trained and evaluated."""
    paths = Paths(tmp_path_factory.mktemp("home"))
    config: Config = from_plain(Config, PARAMS)
    for stage, paradigm in pipeline.plan(replace(config, paradigms=("sliding_window", "dti_isolated"))):
        if stage.name != "compare":
            pipeline.execute(stage, config, paths, paradigm)
    return paths


@pytest.fixture(scope="module")
def scorer(trained: Paths) -> Scorer:
    return Scorer.load(trained.model("sliding_window"))


def plain(item_id: str | None = "1", text: str | None = None, **more: Any) -> dict[str, Any]:
    return {key: value for key, value in {"item_id": item_id, "item_text": text, **more}.items() if value is not None}


def request_of_target(log: dict[str, list[Any]], row: int, with_text: bool) -> dict[str, Any]:
    """A target of the log as a server would be asked: the whole history before it, then the item."""

    def item(r: int) -> dict[str, Any]:
        return plain(log["item_id"][r], log["item_text"][r] if with_text else None)

    history = [item(r) | {"label": log["label"][r]} for r in range(row - log["position"][row], row)]
    return {"user_id": log["user_id"][row], "history": history, "candidates": [item(row)]}


@pytest.mark.parametrize("paradigm", ["sliding_window", "dti_isolated"])
@pytest.mark.parametrize("with_text", [True, False])
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_test_splits_scores_come_out_of_dti_score(
    trained: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paradigm: str, with_text: bool, ending: str
) -> None:
    monkeypatch.setenv("DTI_HOME", str(trained.home))
    log = pq.read_table(trained.events / "interactions.parquet").to_pydict()
    evaluated = pq.read_table(trained.evaluation(paradigm) / "predictions.parquet").to_pydict()
    asked = [request_of_target(log, row, with_text) for row in evaluated["row"]]
    source, out = tmp_path / f"requests.{ending}", tmp_path / f"answers.{ending}"
    if ending == "jsonl":
        source.write_text("".join(json.dumps(request) + "\n" for request in asked))
    else:
        pq.write_table(pa.Table.from_pylist(asked), source)

    done = CliRunner().invoke(app, ["score", str(source), "--paradigm", paradigm, "--out", str(out), "--json"])

    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["requests"], report["candidates"]) == (len(asked), len(asked))
    answers = (
        [json.loads(line) for line in out.read_text().splitlines()]
        if ending == "jsonl"
        else pq.read_table(out).to_pylist()
    )
    assert [answer["user_id"] for answer in answers] == [request["user_id"] for request in asked]
    np.testing.assert_allclose(
        [answer["probabilities"][0] for answer in answers], evaluated["probability"], rtol=0, atol=1e-6
    )


def test_cached_item_states_give_the_same_answers(trained: Paths) -> None:
    """Also for new items, and for items that come again."""
    uncached = Scorer.load(trained.model("dti_isolated"))
    cached = Scorer.load(trained.model("dti_isolated"), cache_items=True)
    draw = np.random.default_rng(1)
    for _ in range(3):
        asked = [
            {
                "history": [plain(str(i), label=int(draw.integers(2))) for i in draw.integers(1, 60, length)],
                "candidates": [plain(str(draw.integers(1, 60))), plain("0", f"A title number {draw.integers(20)}")],
            }
            for length in (0, 3, 40)
        ]
        for one, other in zip(uncached.score(asked), cached.score(asked), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_states_are_cached_for_no_other_paradigm(trained: Paths, tmp_path: Path) -> None:
    model = str(trained.model("sliding_window"))
    done = CliRunner().invoke(app, ["score", str(tmp_path / "r.jsonl"), "--model", model, "--cache-items"])
    assert done.exit_code == 2
    assert "paradigm sliding_window" in " ".join(done.stderr.split())


def test_a_score_depends_on_its_own_request_only(scorer: Scorer) -> None:
    draw = np.random.default_rng(0)

    def items(count: int) -> list[dict[str, Any]]:
        return [plain(str(i)) for i in draw.integers(1, 60, count)]

    asked = [
        {"history": [i | {"label": int(draw.integers(2))} for i in items(h)], "candidates": items(c)}
        for h, c in ((0, 1), (3, 4), (CONTEXT, 2), (30, 7), (2, 0), (30, 40))
    ]
    together = scorer.score(asked)
    assert [len(answer) for answer in together] == [1, 4, 2, 7, 0, 40]
    for request, answer in zip(asked, together, strict=True):
        alone = [scorer.score([request | {"candidates": [c]}])[0][0] for c in request["candidates"]]
        np.testing.assert_allclose(answer, alone, rtol=0, atol=1e-6)
    assert scorer.score(pandas.DataFrame(asked)) == together


def test_only_the_last_n_interactions_count_and_they_do(scorer: Scorer) -> None:
    history = [plain(str(i + 1), label=i % 2) for i in range(CONTEXT)]
    ask = {"history": history, "candidates": [plain("9")]}
    [[score_]] = scorer.score([ask])
    [[longer]] = scorer.score([ask | {"history": [plain("40", label=1), plain("41", label=0), *history]}])
    assert longer == pytest.approx(score_, abs=1e-7)
    [[other]] = scorer.score([ask | {"history": [history[0] | {"label": 1 - history[0]["label"]}, *history[1:]]}])
    assert other != pytest.approx(score_, abs=1e-7)


def test_items_are_told_apart_and_named_as_in_training(scorer: Scorer, trained: Paths) -> None:
    log = pq.read_table(trained.events / "interactions.parquet").to_pydict()
    title = dict(zip(log["item_id"], log["item_text"], strict=True))["7"]
    history = [plain("3", label=1)]
    named = [
        plain("7"),
        plain("7", title),
        plain("8"),
        plain("no such item"),
        plain("no such item", "item no such item"),
    ]
    [answer] = scorer.score([{"history": history, "candidates": named}])
    assert answer[0] == pytest.approx(answer[1], abs=1e-7)
    assert answer[0] != pytest.approx(answer[2], abs=1e-7)
    assert answer[3] == pytest.approx(answer[4], abs=1e-7)


def test_requests_of_all_sizes_have_few_shapes_on_a_gpu() -> None:
    """Each is a compilation there, of 64 at most."""
    for most in (1, 25, 128):
        heights = [padded_height(wanted, most) for wanted in range(1, 500)]
        assert len(set(heights)) <= 9
        assert all(min(wanted, most) <= height <= most for wanted, height in enumerate(heights, 1))
        assert all(height < 2 * wanted for wanted, height in enumerate(heights, 1))
    assert padded_height(0, 8) == 0


def test_a_prompt_longer_than_the_trainings_rows_is_scored(trained: Paths) -> None:
    scorer = Scorer.load(trained.model("sliding_window"))
    scorer.manifest.report.network["row_length"] = 16  # as if every prompt of the training had been short
    long = [plain(str(i), "many words that make a long title indeed", label=1) for i in range(CONTEXT)]
    [answer] = scorer.score([{"history": long, "candidates": [plain("1"), plain("2")]}])
    assert len(answer) == 2


BAD = {
    "[1]": "line 2 must be an object",
    '{"history": []}': "line 2 key candidates is missing",
    '{"history": {}, "candidates": []}': "line 2 key history must be a list",
    '{"history": [], "candidates": [], "k": 1}': "line 2 key k is not known",
    '{"history": [], "candidates": [{}]}': "line 2 key candidates[0] names no item",
    '{"history": [], "candidates": [{"item_text": "  "}]}': "line 2 key candidates[0] names no item",
    '{"history": [], "candidates": ["7"]}': "line 2 key candidates[0] must be an object",
    '{"history": [], "candidates": [{"item_text": 7}]}': "line 2 key candidates[0].item_text must be text",
    '{"history": [], "candidates": [{"item_id": 0.5}]}': "line 2 key candidates[0].item_id must be text or a whole",
    '{"history": [{"item_id": 1, "label": 1}, {"item_id": 1}], "candidates": []}': "history[1].label is missing",
    '{"history": [{"item_id": 1, "label": 2}], "candidates": []}': "line 2 key history[0].label must be 0 or 1, not 2",
    '{"history": [{"item_id": 1, "label": "1"}], "candidates": []}': "history[0].label must be 0 or 1, not '1'",
    '{"user_id": [7], "history": [], "candidates": []}': "line 2 key user_id must be",
    '{"history": [}': "line 2 is not JSON",
    '{"history": "\udce9"}': "line 2 is not UTF-8",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_one_sentence_and_leaves_what_was_there(
    trained: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr(score, "CHUNK", 1)  # the good line before it is answered, and then thrown away
    source, out = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    good = '{"history": [], "candidates": [{"item_id": 1}]}'
    source.write_bytes(f"{good}\n{line}\n".encode("utf-8", "surrogateescape"))
    out.write_text("the old answers")
    done = CliRunner().invoke(
        app, ["score", str(source), "--model", str(trained.model("sliding_window")), "--out", str(out)]
    )
    assert done.exit_code == 2
    assert f"error: {source} " in done.stderr
    assert BAD[line] in done.stderr
    assert out.read_text() == "the old answers"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["answers.jsonl", "requests.jsonl"]


def parquet_without_candidates(path: Path) -> None:
    pq.write_table(pa.table({"history": [[]]}), path)


def parquet_with_a_bad_label(path: Path) -> None:
    rows = [{"history": [{"item_id": "1", "label": label}], "candidates": [{"item_id": "2"}]} for label in (1, 5)]
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"no parquet"), "is not a whole Parquet file"),
        (parquet_without_candidates, "has no column candidates"),
        (parquet_with_a_bad_label, "row 2 key history[0].label must be 0 or 1, not 5"),
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "cannot be read"),
    ],
)
def test_a_bad_parquet_file_is_one_sentence(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    source = tmp_path / "requests.parquet"
    make(source)
    with pytest.raises(InputError, match=f"{source} ") as refusal:
        list(requests.read(source))
    assert says in str(refusal.value)


def test_lines_are_answered_one_by_one_and_a_bad_one_does_not_end_the_service(scorer: Scorer) -> None:
    good = b'{"user_id": 1, "history": [{"item_id": 3, "label": 1}], "candidates": [{"item_id": 4}]}\n'
    out = io.BytesIO()
    with pytest.raises(CheckFailed, match="1 of 3 lines"):
        score.score_stream(io.BytesIO(good + b"{}\n" + good), scorer, out)
    first, second, third = map(json.loads, out.getvalue().splitlines())
    assert first == third
    assert first["user_id"] == 1
    assert second == {"error": "line 2 key history is missing"}


def test_an_answer_comes_before_the_next_question_is_asked(scorer: Scorer) -> None:
    out = io.BytesIO()

    class Talk(io.RawIOBase):
        """Asks its second question only when the first was answered."""

        asked = 0

        def readline(self, size: int | None = -1) -> bytes:
            assert out.getvalue().count(b"\n") == self.asked
            self.asked += 1
            if self.asked == 4:
                return b""
            return b'{"history": [], "candidates": [{"item_id": 1}]}\n'

    assert score.score_stream(Talk(), scorer, out).requests == 3


def test_without_a_model_or_a_way_to_name_one_the_command_says_so(home: Paths) -> None:
    for arguments, says in (
        (["r.jsonl"], "one of --paradigm and --model"),
        (["r.jsonl", "--paradigm", "dtl"], "did you mean `dti`"),
        (["r.jsonl", "--paradigm", "dti"], "run `dti train` first"),
        (["r.jsonl", "--paradigm", "dti", "--stream"], "--stream reads standard input"),
    ):
        done = CliRunner().invoke(app, ["score", *arguments])
        assert done.exit_code == 2
        assert says in " ".join(done.stderr.split())


def test_requests_are_chunked_by_their_candidates() -> None:
    def ask(candidates: int) -> Request:
        return Request(None, (), (), (Item("1", None),) * candidates)

    sizes = [[len(r.candidates) for r in chunk] for chunk in requests.chunks(map(ask, [3, 3, 9, 0, 1]), 4)]
    assert sizes == [[3, 3], [9], [0, 1]]


def test_a_served_model_answers_threads_and_refuses_in_one_sentence(trained: Paths, scorer: Scorer) -> None:
    served = CandidateScorer()
    context = PythonModelContext({"model": str(trained.model("sliding_window"))}, None)
    served.load_context(context)
    asked = [
        pandas.DataFrame([{"history": [plain(str(i), label=1)], "candidates": [plain(str(i + 1))]}]) for i in range(8)
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda frame: served.predict(context, frame), asked))
    assert answers == [scorer.score(frame) for frame in asked]
    with pytest.raises(MlflowException, match=r"^request 0 key candidates\[0\] names no item") as refusal:
        served.predict(context, pandas.DataFrame([{"history": [], "candidates": [{"item_text": " "}]}]))
    assert refusal.value.get_http_status_code() == 400


def test_a_model_that_learned_from_late_labels_asks_for_times(scorer: Scorer) -> None:
    late = replace(scorer, knowledge=Knowledge(feedback_delay=60.0))
    asked = {"history": [plain("1", label=1)], "candidates": [plain("2")]}
    with pytest.raises(InputError, match="history has no timestamps, which a model"):
        late.score([asked])
    timed = {"history": [{**asked["history"][0], "timestamp": 100}], "candidates": asked["candidates"]}
    unknown = {"history": [{**timed["history"][0], "label": None}], "candidates": asked["candidates"]}
    early, known = late.score([{**timed, "timestamp": 150}, {**timed, "timestamp": 160}])
    assert early == pytest.approx(late.score([unknown])[0], abs=1e-6)
    assert known == pytest.approx(scorer.score([asked])[0], abs=1e-6)
    assert abs(early[0] - known[0]) > 1e-5
