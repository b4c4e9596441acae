"""`dti serve` on a registry: it serves the champion, and the next one when the alias moves, without a lost request."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from dti_pipeline import tracking
from dti_pipeline.cli import app
from dti_pipeline.paths import Paths
from dti_pipeline.serving.http import server
from dti_pipeline.serving.scorer import Scorer
from tests.small_models import train

pytestmark = pytest.mark.slow
PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "serve.md"
ASKED = {"history": [{"item_id": "3", "label": 1}], "candidates": [{"item_id": "4"}, {"item_id": "5"}]}


@pytest.fixture
def log_of_its_own() -> Iterator[None]:
    """The command sends the process's log to its standard error, and here it is not a process of its own."""
    root, package = logging.getLogger(), logging.getLogger("dti_pipeline")
    before = root.handlers[:], root.level, package.level
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, handler)
    root.handlers[:], root.level, package.level = before


def as_documented(url: str) -> int:
    """Ask a service of a `sliding_window` model what the page asks; how many requests that were."""
    block = re.search(r"```sh\n(curl http://127\.0\.0\.1:8000/v1/score.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    if shutil.which("curl") is None:
        return 0
    script = "set -e\n" + block[1].replace("http://127.0.0.1:8000", url)
    said = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    answer, health = map(json.loads, said.splitlines()[:2])
    assert len(answer["probabilities"]) == 2
    assert (health["status"], health["paradigm"]) == ("ok", "sliding_window")
    assert 'dti_requests_total{status="200"} 1.0' in said
    return 1


def test_without_a_champion_the_command_says_so(tracked: Paths) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert done.exit_code == 2
    assert "models:/dti@champion is not in the registry" in " ".join(done.stderr.split())


def test_the_next_champion_takes_over_under_load_until_sigterm(
    tracked: Paths, log_of_its_own: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train(tracked, ("sliding_window", "dti"), tracking={"enabled": True})
    store = MlflowClient(tracked.tracking_uri)
    expected = {
        name: Scorer.load(tracking.model_folder(config, tracked, f"models:/dti@{name}")).score([ASKED])[0]
        for name in config.paradigms
    }
    assert not np.allclose(*expected.values(), rtol=0, atol=1e-5)

    def promote(name: str) -> None:
        version = store.get_model_version_by_alias("dti", name).version
        store.set_registered_model_alias("dti", "champion", version)

    urls: list[str] = []
    moved, ended = Event(), Event()

    class Named(server.Server):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            urls.append(self.url)

    def eventually(client: httpx.Client, paradigm: str) -> str:
        """The name of the model in use, once it is of that paradigm."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            health = client.get("/health").json()
            if health.get("paradigm") == paradigm:
                return str(health["model"])
            time.sleep(0.05)
        raise AssertionError(f"no model of {paradigm}")

    def load() -> list[httpx.Response]:
        with httpx.Client(base_url=urls[0], timeout=30) as client:
            answers = []
            while not moved.is_set():
                answers.append(client.post("/v1/score", json=ASKED))
            return answers

    def meanwhile() -> tuple[list[httpx.Response], dict[str, str], int]:
        """What the clients were answered, which models there were, and how many requests came before."""
        try:
            while not urls:
                assert not ended.is_set()
                time.sleep(0.02)
            with httpx.Client(base_url=urls[0], timeout=30) as client, ThreadPoolExecutor(2) as pool:
                names = {eventually(client, "sliding_window"): "sliding_window"}
                documented = as_documented(urls[0])
                loads = [pool.submit(load) for _ in range(2)]
                try:
                    promote("dti")
                    names[eventually(client, "dti")] = "dti"
                    time.sleep(0.2)
                finally:
                    moved.set()
                return [answer for one in loads for answer in one.result()], names, documented
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(server, "Server", Named)
    promote("sliding_window")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(meanwhile)
        done = CliRunner().invoke(app, ["serve", "--port", "0", "--set", "serving.poll_seconds=0.2"])
        ended.set()
        answers, names, documented = other.result()
    assert done.exit_code == 0, done.stderr
    assert {answer.status_code for answer in answers} == {200}
    assert {names[answer.headers["x-model"]] for answer in answers} == set(expected)
    for answer in answers:
        wanted = expected[names[answer.headers["x-model"]]]
        np.testing.assert_allclose(answer.json()["probabilities"], wanted, rtol=0, atol=1e-6)
    log = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"time"')]
    assert len([line for line in log if line["event"] == "request"]) == len(answers) + documented
    assert {line["level"] for line in log} == {"info"}
    assert log[-1]["event"] == "stopped"
