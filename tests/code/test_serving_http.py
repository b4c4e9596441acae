"""`dti serve`: answers are those of `dti score`, and neither load, bad input nor a new model loses one."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from dti_pipeline.config import ServingConfig
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.paths import Paths
from dti_pipeline.serving import requests, score
from dti_pipeline.serving.http import model
from dti_pipeline.serving.http.logs import JsonLines
from dti_pipeline.serving.http.schema import REQUEST
from dti_pipeline.serving.http.server import Server
from dti_pipeline.serving.scorer import Scorer
from tests.code.services import Running, eventually, serving
from tests.small_models import questions, train

pytestmark = pytest.mark.slow  # whole stages: `make test` runs them

NAMES = ("sliding_window", "dti_isolated")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A home with small models of two paradigms."""
    paths = Paths(tmp_path_factory.mktemp("home"))
    train(paths, NAMES, tokens={"template": "{item_text} ({item_id})"})
    return paths


@pytest.fixture(scope="module")
def scorers(trained: Paths) -> dict[str, Scorer]:
    return {name: Scorer.load(trained.model(name)) for name in NAMES}


@pytest.fixture(scope="module")
def running(trained: Paths) -> Iterator[Running]:
    with serving(lambda: trained.model("sliding_window"), body_bytes=20_000, candidates=20, body_seconds=0.5) as found:
        yield found


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Scoring of requests of a user waits for it."""
    opened, real = Event(), Scorer.score

    def held(self: Scorer, asked: Any) -> list[list[float]]:
        if not isinstance(asked[0], dict):  # the proof of a loaded model goes through
            assert opened.wait(20)
        return real(self, asked)

    monkeypatch.setattr(Scorer, "score", held)
    return opened


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


def test_a_request_that_the_model_refuses_does_not_fail_the_others_of_its_batch(
    trained: Paths, scorers: dict[str, Scorer], gate: Event
) -> None:
    asked = [*questions(3), {"history": [], "candidates": [{"item_text": "a title"}]}, *questions(2, seed=2)]
    with serving(lambda: trained.model("sliding_window")) as found, ThreadPoolExecutor(len(asked)) as pool:
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
    trained: Paths, scorers: dict[str, Scorer], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    asked = questions(30, seed=4)
    with caplog.at_level("INFO"), serving(lambda: trained.model(name), item_states=25) as found:
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


def test_one_request_more_than_are_let_in_is_told_to_come_again(
    trained: Paths, scorers: dict[str, Scorer], gate: Event
) -> None:
    asked = questions(3)
    with serving(lambda: trained.model("sliding_window"), open_requests=3) as found, ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(found.ask, one) for one in asked]
        eventually(lambda: found.metric("dti_open_requests") == 3)
        for _ in range(5):
            refused = found.ask(asked[0])
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert "3 requests are open" in refused.json()["error"]
        assert found.client.get("/health").status_code == 200
        gate.set()
        for one, answer in zip(asked, answers, strict=True):
            [expected] = scorers["sliding_window"].score([one])
            np.testing.assert_allclose(answer.result().json()["probabilities"], expected, rtol=0, atol=1e-6)
        assert found.ask(asked[0]).status_code == 200
        assert found.metric('dti_requests_total{status="429"}') == 5


def test_a_request_that_has_waited_too_long_is_not_scored(trained: Paths, gate: Event) -> None:
    with (
        serving(lambda: trained.model("sliding_window"), patience_seconds=0.2, wait_ms=0.0) as found,
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(found.ask, questions(1)[0])
        eventually(lambda: found.metric("dti_open_requests") == 1)
        time.sleep(0.05)  # it is being scored
        second = pool.submit(found.ask, questions(1)[0])
        eventually(lambda: found.metric("dti_open_requests") == 2)
        time.sleep(0.3)
        gate.set()
        assert first.result().status_code == 200
        assert (second.result().status_code, second.result().headers["retry-after"]) == (429, "1")


def test_another_model_is_taken_under_load_without_a_lost_or_wrong_answer(
    trained: Paths, scorers: dict[str, Scorer], tmp_path: Path
) -> None:
    """First the alias moves, then the folder is published anew."""
    asked = questions(20, seed=3)
    expected = {name: scorer.score(asked) for name, scorer in scorers.items()}
    folder = tmp_path / "model"
    shutil.copytree(trained.model("dti_isolated"), folder)
    named, done = [trained.model("sliding_window")], Event()

    def load(found: Running, seed: int) -> list[tuple[int, httpx.Response]]:
        draw, answers = np.random.default_rng(seed), []
        with httpx.Client(base_url=found.server.url, timeout=30) as client:
            while not done.is_set():
                which = int(draw.integers(len(asked)))
                answers.append((which, client.post("/v1/score", json=asked[which])))
        return answers

    with serving(lambda: named[0], poll_seconds=0.05) as found, ThreadPoolExecutor(4) as pool:
        loads: list[Future[list[tuple[int, httpx.Response]]]] = [pool.submit(load, found, seed) for seed in range(4)]
        names = {found.client.get("/health").json()["model"]: "sliding_window"}
        try:
            named[0] = folder
            eventually(lambda: found.client.get("/health").json()["paradigm"] == "dti_isolated")
            names[found.client.get("/health").json()["model"]] = "dti_isolated"
            aside = tmp_path / "aside"
            shutil.copytree(trained.model("sliding_window"), aside)
            folder.rename(tmp_path / "old")
            aside.rename(folder)
            eventually(lambda: found.client.get("/health").json()["paradigm"] == "sliding_window")
        finally:
            done.set()
        answers = [answer for one in loads for answer in one.result()]
        assert found.metric('dti_model_loads_total{outcome="loaded"}') == 3
    assert {answer.status_code for _, answer in answers} == {200}
    assert {names[answer.headers["x-model"]] for _, answer in answers} == set(NAMES)
    for which, answer in answers:
        wanted = expected[names[answer.headers["x-model"]]][which]
        np.testing.assert_allclose(answer.json()["probabilities"], wanted, rtol=0, atol=1e-6)


def test_a_broken_new_model_leaves_the_old_one_and_one_line(
    trained: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(trained.model("dti_isolated"), broken)
    weights = next(broken.rglob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    named, looks = [trained.model("sliding_window")], [0]

    def find() -> Path:
        looks[0] += 1
        return named[0]

    with serving(find, poll_seconds=0.02) as found, caplog.at_level("WARNING"):
        before = found.client.get("/health").json()
        named[0] = broken
        eventually(lambda: found.metric('dti_model_loads_total{outcome="refused"}') == 1)
        seen = looks[0]
        eventually(lambda: looks[0] > seen + 3)
        assert found.client.get("/health").json() == before
        assert found.ask(questions(1)[0]).headers["x-model"] == before["model"]
        assert found.metric('dti_model_loads_total{outcome="refused"}') == 1
        named[0] = tmp_path / "nothing"
        eventually(lambda: any("nothing has no manifest" in str(vars(line)) for line in caplog.records))
        weights.write_bytes(whole)
        named[0] = broken
        monkeypatch.setattr(model, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + model.RETRY_SECONDS))
        eventually(lambda: found.client.get("/health").json()["paradigm"] == "dti_isolated")
    told = [line.fields["why"] for line in caplog.records if line.message == "the model in use stays"]  # type: ignore[attr-defined]
    assert len(told) == 2
    assert told[0].startswith(f"{broken} cannot be served: ")


def test_open_requests_are_answered_when_the_service_stops(
    trained: Paths, scorers: dict[str, Scorer], gate: Event
) -> None:
    asked = questions(8)
    with serving(lambda: trained.model("sliding_window")) as found, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(found.ask, one) for one in asked]
        eventually(lambda: found.metric("dti_open_requests") == 8)
        found.server.stop()

        def closed() -> bool:
            with suppress(httpx.TransportError):
                httpx.get(f"{found.server.url}/health", timeout=0.2)
                return False
            return True

        eventually(closed)
        assert found.thread.is_alive()
        gate.set()
        for one, answer in zip(asked, answers, strict=True):
            [expected] = scorers["sliding_window"].score([one])
            np.testing.assert_allclose(answer.result().json()["probabilities"], expected, rtol=0, atol=1e-6)


def test_requests_that_outlast_the_stop_do_not_hold_it_up(trained: Paths, gate: Event) -> None:
    with (
        serving(lambda: trained.model("sliding_window"), stop_seconds=0.5) as found,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(found.ask, questions(1)[0])
        eventually(lambda: found.metric("dti_open_requests") == 1)
        found.server.stop()
        found.thread.join(10)
        assert not found.thread.is_alive()
        gate.set()
        assert answer.exception() is not None or answer.result().status_code >= 500


def test_health_is_said_before_the_model_is_there(trained: Paths) -> None:
    there = Event()

    def find() -> Path:
        assert there.wait(20)
        return trained.model("sliding_window")

    with serving(find, ready=False) as found:
        health, answer = found.client.get("/health"), found.ask(questions(1)[0])
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        assert (answer.status_code, answer.json()) == (503, {"error": "the model is being loaded"})
        there.set()
        eventually(lambda: found.client.get("/health").status_code == 200)
        assert found.client.get("/health").json()["paradigm"] == "sliding_window"
        assert found.ask(questions(1)[0]).status_code == 200


def test_a_service_without_a_model_or_an_address_ends_in_one_sentence(trained: Paths, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        Server(ServingConfig(), lambda: tmp_path, "127.0.0.1", 0).run()
    with serving(lambda: trained.model("sliding_window")) as found:
        port = int(found.server.url.rpartition(":")[2])
        with pytest.raises(InputError, match=f"nothing can be served at 127.0.0.1 port {port}"):
            Server(ServingConfig(), lambda: tmp_path, "127.0.0.1", port)


def test_logs_are_json_lines_without_user_data(
    trained: Paths, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "zanzibar"
    good = {"user_id": secret, "history": [{"item_id": secret, "label": 1}], "candidates": [{"item_id": secret}] * 2}
    real = Scorer.score

    def failing(self: Scorer, asked: Any) -> list[list[float]]:
        if not isinstance(asked[0], dict) and asked[0].user_id == f"{secret} fails":
            raise RuntimeError(f"an error that quotes {secret}")
        return real(self, asked)

    monkeypatch.setattr(Scorer, "score", failing)
    with serving(lambda: trained.model("sliding_window")) as found, caplog.at_level("INFO"):
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


def test_metrics_count_what_was_asked(trained: Paths) -> None:
    asked = questions(5)
    with serving(lambda: trained.model("dti_isolated")) as found:
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
