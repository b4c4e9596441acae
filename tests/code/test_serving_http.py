"""`dti serve`: answers are those of `dti score`, bad input gets one sentence, and logs hold no part of either."""

from __future__ import annotations

import gc
import io
import json
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event

import numpy as np
import pytest

from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.paths import Paths
from dti_pipeline.serving import requests, score
from dti_pipeline.serving.http.logs import JsonLines
from dti_pipeline.serving.http.schema import REQUEST
from dti_pipeline.serving.requests import Request
from dti_pipeline.serving.scorer import Scored, Scorer
from tests.code.services import NAMES, Running, eventually, serving
from tests.small_models import questions

pytestmark = pytest.mark.slow  # whole stages: `make test` runs them


@pytest.fixture(scope="module")
def running(served: Paths) -> Iterator[Running]:
    with serving(lambda: served.model("sliding_window"), body_bytes=20_000, candidates=20, body_seconds=0.5) as found:
        yield found


def streamed(lines: list[bytes], scorer: Scorer) -> list[bytes]:
    """What `dti score --stream` answers."""
    out = io.BytesIO()
    with suppress(CheckFailed):
        score.score_stream(io.BytesIO(b"".join(line + b"\n" for line in lines)), scorer, out)
    return out.getvalue().splitlines(keepends=True)


def test_an_answer_is_the_line_that_dti_score_writes(running: Running, scorers: dict[str, Scorer]) -> None:
    asked = [*questions(12), {"history": [], "candidates": []}, {"user_id": 7, "history": [], "candidates": []}]
    lines = streamed([json.dumps(one).encode() for one in asked], scorers["sliding_window"])
    answers = [running.ask(one) for one in asked]
    assert [answer.content for answer in answers] == lines
    assert {answer.status_code for answer in answers} == {200}


def test_requests_that_come_together_are_scored_together_and_get_their_own_answers(
    running: Running, scorers: dict[str, Scorer]
) -> None:
    asked = questions(60, seed=1)
    batches, requests_ = (running.metric(f"dti_batch_requests_{name}") for name in ("count", "sum"))
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(running.ask, asked))
    for answer, expected in zip(answers, scorers["sliding_window"].score(asked), strict=True):
        np.testing.assert_allclose(answer.json()["probabilities"], expected, rtol=0, atol=1e-6)
    assert [answer.json()["user_id"] for answer in answers] == [one["user_id"] for one in asked]
    assert running.metric("dti_batch_requests_sum") - requests_ == len(asked)
    assert running.metric("dti_batch_requests_count") - batches < len(asked)


BAD = [
    b"",
    b"[1]",
    b"{",
    b'{"history": []}',
    b'{"history": {}, "candidates": []}',
    b'{"history": [], "candidates": [], "k": 1}',
    b'{"history": [], "candidates": [{}]}',
    b'{"history": [], "candidates": ["7"]}',
    b'{"history": [], "candidates": [{"item_text": 7}]}',
    b'{"history": [], "candidates": [{"item_id": 0.5}]}',
    b'{"history": [{"item_id": 1}], "candidates": []}',
    b'{"history": [{"item_id": 1, "label": 2}], "candidates": []}',
    b'{"history": [{"item_id": 1, "label": 1, "timestamp": 4e12}], "candidates": []}',
    b'{"history": [{"item_id": 1, "label": 1, "timestamp": NaN}], "candidates": []}',
    b'{"history": [{"item_id": 1, "label": 1, "timestamp": 1%s}], "candidates": []}' % (b"0" * 400),
    b'{"timestamp": 1, "history": [{"item_id": 1, "label": 1, "timestamp": 2}], "candidates": []}',
    b'{"user": 3, "history": [], "candidates": []}',
    b'{"user_id": [7], "history": [], "candidates": []}',
    b'{"user_id": "\\ud800", "history": [], "candidates": []}',
    b'{"\\ud800": 1, "history": [], "candidates": []}',
    b'{"history": [], "candidates": [{"item_text": "half \\ud83d"}]}',
    b'{"history": "\xe9"}',
    b"[" * 9_000,
    b'{"history": [], "candidates": [], "timestamp": %s}' % (b"9" * 5_000),
    b'{"history": [], "candidates": [{"item_text": "a title without an id"}]}',  # which this model's template names
]


@pytest.mark.parametrize("body", BAD, ids=lambda body: repr(body[:60]))
def test_a_bad_request_gets_the_sentence_of_dti_score(
    running: Running, scorers: dict[str, Scorer], body: bytes
) -> None:
    (expected,) = streamed([body], scorers["sliding_window"])
    answer = running.ask(body + b"\n")
    assert answer.status_code == 422
    assert answer.content == expected.replace(b"line 1 ", b"the request ")
    assert running.ask(questions(1)[0]).status_code == 200


@pytest.mark.long  # it counts the memory of its whole process, which in `make test` other tests share
def test_bad_requests_leave_nothing_behind(running: Running) -> None:
    """Each is another one: what a service kept of one it would keep of all."""

    def held(numbers: range) -> int:
        for number in numbers:
            title = {"item_text": f"{number} " + "x" * 2_000}
            bodies = (
                {f"key {number}": title},
                {"user_id": f"{number}", "history": [], "candidates": [title]},  # the model refuses it
                {"user_id": f"{number}", "history": [title], "candidates": []},
                {"user_id": f"{number}", "history": [], "candidates": [title], "state": f"{number}"},
            )
            for body in bodies:
                assert running.ask(body).status_code in (409, 422)
            assert running.ask(json.dumps(bodies[0]).encode()[:-1]).status_code == 422
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = held(range(20))
        assert held(range(20, 70)) - before < 50 * 2_000, "one text of each number would be more"
    finally:
        tracemalloc.stop()
    assert running.ask(questions(1)[0]).status_code == 200


def test_a_request_that_the_model_refuses_does_not_fail_the_others_of_its_batch(
    served: Paths, scorers: dict[str, Scorer], gate: Event
) -> None:
    asked = [*questions(3), {"history": [], "candidates": [{"item_text": "a title"}]}, *questions(2, seed=2)]
    with serving(lambda: served.model("sliding_window")) as found, ThreadPoolExecutor(len(asked)) as pool:
        answers = [pool.submit(found.ask, one) for one in asked]
        eventually(lambda: found.metric("dti_open_requests") == len(asked))
        gate.set()
        codes = [answer.result().status_code for answer in answers]
        assert codes == [200, 200, 200, 422, 200, 200]
        for one, answer in zip(asked, answers, strict=True):
            if answer.result().status_code == 200:
                [expected] = scorers["sliding_window"].score([one])
                np.testing.assert_allclose(answer.result().json()["probabilities"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_kept_item_states_are_bounded_and_change_no_answer(
    served: Paths, scorers: dict[str, Scorer], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    asked = questions(30, seed=4)
    with caplog.at_level("INFO"), serving(lambda: served.model(name), item_states=25) as found:
        scorer = found.server._models.current.scorer  # type: ignore[union-attr]
        most = 0
        for one, expected in zip(asked, scorers[name].score(asked), strict=True):
            np.testing.assert_allclose(found.ask(one).json()["probabilities"], expected, rtol=0, atol=1e-5)
            if scorer.states is not None:
                most = max(most, len(scorer.states.index))
                assert len(scorer.states.offsets) == len(scorer.states.index) + 1
    # 59 items, so many of which fill it again and again; a model that cannot keep any says so.
    assert 10 < most <= 25 if name == "dti_isolated" else most == 0
    assert ("no item states are kept" in caplog.messages) == (name != "dti_isolated")


def test_a_request_that_is_too_large_or_too_slow_is_refused(running: Running) -> None:
    long = {"history": [], "candidates": [{"item_id": "1", "item_text": "x" * 30_000}]}

    def slowly(*parts: tuple[float, bytes]) -> Iterator[bytes]:
        for seconds, part in parts:
            time.sleep(seconds)
            yield part

    for answer, status, says in (
        (running.ask(long), 413, "serving.body_bytes allows, 20000"),
        (running.client.post("/v1/score", content=iter([json.dumps(long).encode()])), 413, "serving.body_bytes"),
        (running.ask({"history": [], "candidates": [{"item_id": 1}] * 21}), 413, "21 candidates"),
        (running.client.post("/v1/score", content=slowly((0, b"{"), (0.9, b"}"))), 408, "serving.body_seconds"),
    ):
        assert answer.status_code == status
        assert says in answer.json()["error"]
    assert running.ask(questions(1)[0]).status_code == 200
    assert running.metric("dti_open_requests") == 0


def test_logs_are_json_lines_without_user_data(
    served: Paths, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "zanzibar"
    good = {"user_id": secret, "history": [{"item_id": secret, "label": 1}], "candidates": [{"item_id": secret}] * 2}
    real = Scorer.score_each

    def failing(self: Scorer, asked: Sequence[Request]) -> list[Scored | InputError]:
        if asked[0].user_id == f"{secret} fails":
            raise RuntimeError(f"an error that quotes {secret}")
        return real(self, asked)

    monkeypatch.setattr(Scorer, "score_each", failing)
    with serving(lambda: served.model("sliding_window")) as found, caplog.at_level("INFO"):
        caplog.clear()
        answers = [
            found.ask(good, **{"X-Request-Id": "mine-1"}),
            found.ask({secret: 1}),
            found.ask(good | {"user_id": f"{secret} fails"}, **{"X-Request-Id": f"{secret} with spaces"}),
        ]
        records = [record for record in caplog.records if record.name.startswith(("dti_pipeline", "uvicorn"))]
    assert [answer.status_code for answer in answers] == [200, 422, 500]
    assert secret not in answers[2].text
    written = [JsonLines().format(record) for record in records]
    assert not [line for line in written if secret in line]
    lines = [json.loads(line) for line in written]
    asked = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in asked] == [200, 422, 500]
    assert [line["id"] for line in asked] == [answer.headers["x-request-id"] for answer in answers]
    assert (asked[0]["id"], asked[0]["candidates"]) == ("mine-1", 2)
    assert all(line["ms"] >= 0 for line in asked)
    assert {line.get("error") for line in lines if line["level"] == "error"} == {"RuntimeError"}


def test_metrics_count_what_was_asked(served: Paths) -> None:
    asked = questions(5)
    with serving(lambda: served.model("dti_isolated")) as found:
        for one in [*asked, {}]:
            found.ask(one)
        assert found.metric('dti_requests_total{status="200"}') == 5
        assert found.metric('dti_requests_total{status="422"}') == 1
        assert found.metric("dti_candidates_total") == sum(len(one["candidates"]) for one in asked)
        assert found.metric("dti_request_seconds_count") == 6
        assert found.metric("dti_batch_seconds_count") == 5
        name = found.client.get("/health").json()["model"]
        assert found.metric(f'dti_model_info{{model="{name}",paradigm="dti_isolated"}}') == 1
        assert found.client.get("/metrics").headers["content-type"].startswith("text/plain")


def test_the_openapi_page_shows_what_is_answered(running: Running) -> None:
    shown = running.client.get("/openapi.json").json()["paths"]["/v1/score"]["post"]
    body = shown["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == set(requests.KEYS) == set(REQUEST["properties"])
    assert {"200", "413", "422", "429", "503"} <= set(shown["responses"])
    example = body["example"]
    example["history"] = example["history"][:1]  # this model's template needs ids
    answer = running.ask(example)
    assert answer.status_code == 200
    assert set(answer.json()) == {"user_id", "probabilities"}
    assert running.client.get("/docs").status_code == 200
