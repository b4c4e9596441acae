"""`dti serve` under load: too many requests, a new model and the end of the service lose no answer and change none."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from dti_pipeline.config import ServingConfig
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.serving.http import model
from dti_pipeline.serving.http.metrics import Metrics
from dti_pipeline.serving.http.server import Server
from dti_pipeline.serving.scorer import Scorer
from tests.code.services import NAMES, Running, eventually, serving
from tests.small_models import questions

pytestmark = pytest.mark.slow  # whole stages: `make test` runs them


def test_one_request_more_than_are_let_in_is_told_to_come_again(
    served: Paths, scorers: dict[str, Scorer], gate: Event
) -> None:
    asked = questions(3)
    with serving(lambda: served.model("sliding_window"), open_requests=3) as found, ThreadPoolExecutor(3) as pool:
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


def test_a_request_that_has_waited_too_long_is_not_scored(served: Paths, gate: Event) -> None:
    with (
        serving(lambda: served.model("sliding_window"), patience_seconds=0.2, wait_ms=0.0) as found,
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
    served: Paths, scorers: dict[str, Scorer], tmp_path: Path
) -> None:
    """First the alias moves, then the folder is published anew."""
    asked = questions(20, seed=3)
    expected = {name: scorer.score(asked) for name, scorer in scorers.items()}
    folder = tmp_path / "model"
    shutil.copytree(served.model("dti_isolated"), folder)
    named, done = [served.model("sliding_window")], Event()

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
            shutil.copytree(served.model("sliding_window"), aside)
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


def test_a_link_that_moves_while_a_model_is_read_makes_no_mixture_of_two(
    served: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, turns, real = tmp_path / "current", cycle(NAMES), Scorer.load

    def move() -> None:
        link.unlink(missing_ok=True)
        link.symlink_to(served.model(next(turns)))

    def moving(folder: Path) -> Scorer:
        move()
        return real(folder)

    move()
    monkeypatch.setattr(Scorer, "load", moving)
    models = model.Models(lambda: link, Metrics(), ServingConfig())
    for name in (*NAMES, *NAMES):
        models.look()
        assert models.current is not None
        assert models.current.paradigm == name


def test_a_broken_new_model_leaves_the_old_one_and_one_line(
    served: Paths, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(served.model("dti_isolated"), broken)
    weights = next(broken.rglob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    named, looks = [served.model("sliding_window")], [0]

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
    served: Paths, scorers: dict[str, Scorer], gate: Event
) -> None:
    asked = questions(8)
    with serving(lambda: served.model("sliding_window")) as found, ThreadPoolExecutor(8) as pool:
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


def test_requests_that_outlast_the_stop_do_not_hold_it_up(served: Paths, gate: Event) -> None:
    with (
        serving(lambda: served.model("sliding_window"), stop_seconds=0.5) as found,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(found.ask, questions(1)[0])
        eventually(lambda: found.metric("dti_open_requests") == 1)
        found.server.stop()
        found.thread.join(10)
        assert not found.thread.is_alive()
        gate.set()
        assert answer.exception() is not None or answer.result().status_code >= 500


def test_health_is_said_before_the_model_is_there(served: Paths) -> None:
    there = Event()

    def find() -> Path:
        assert there.wait(20)
        return served.model("sliding_window")

    with serving(find, ready=False) as found:
        health, answer = found.client.get("/health"), found.ask(questions(1)[0])
        assert (health.status_code, health.json()) == (503, {"status": "loading"})
        assert (answer.status_code, answer.json()) == (503, {"error": "the model is being loaded"})
        there.set()
        eventually(lambda: found.client.get("/health").status_code == 200)
        assert found.client.get("/health").json()["paradigm"] == "sliding_window"
        assert found.ask(questions(1)[0]).status_code == 200


def test_a_service_without_a_model_or_an_address_ends_in_one_sentence(served: Paths, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        Server(ServingConfig(), lambda: tmp_path, "127.0.0.1", 0).run()
    with serving(lambda: served.model("sliding_window")) as found:
        port = int(found.server.url.rpartition(":")[2])
        with pytest.raises(InputError, match=f"nothing can be served at 127.0.0.1 port {port}"):
            Server(ServingConfig(), lambda: tmp_path, "127.0.0.1", port)
