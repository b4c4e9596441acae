"""`dti serve` on a registry: it serves the champion, and the next one when the alias moves, without a lost request."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from dti_pipeline import pipeline, tracking
from dti_pipeline.cli import app
from dti_pipeline.config import Config, from_plain
from dti_pipeline.paths import Paths
from dti_pipeline.serving.scorer import Scorer

pytestmark = pytest.mark.slow
PARAMS: dict[str, Any] = {
    "synth": {"users": 40, "items": 60, "interactions_per_user": 25, "defects": 0},
    "validation": {"min_rows": 100},
    "packing": {"context": 6, "targets": 8, "row_length": 256},
    "model": {"hidden_size": 32, "heads": 2, "kv_heads": 2, "intermediate_size": 48},
    "training": {"epochs": 0.2, "evaluations": 0, "targets_per_step": 32, "tokens_per_batch": 1024},
}
ASKED = {"history": [{"item_id": "3", "label": 1}], "candidates": [{"item_id": "4"}, {"item_id": "5"}]}


def test_without_a_champion_the_command_says_so(tracked: Paths) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert done.exit_code == 2
    assert "models:/dti@champion is not in the registry" in " ".join(done.stderr.split())


def test_the_next_champion_takes_over_under_load(tracked: Paths) -> None:
    config: Config = replace(from_plain(Config, PARAMS), paradigms=("sliding_window", "dti"))
    for stage, paradigm in pipeline.plan(config):
        if stage.name not in ("evaluate", "compare"):
            pipeline.execute(stage, config, tracked, paradigm)
    store = MlflowClient(tracked.tracking_uri)
    expected = {
        name: Scorer.load(tracking.model_folder(config, tracked, f"models:/dti@{name}")).score([ASKED])[0]
        for name in config.paradigms
    }
    assert not np.allclose(*expected.values(), rtol=0, atol=1e-5)

    def promote(name: str) -> None:
        version = store.get_model_version_by_alias("dti", name).version
        store.set_registered_model_alias("dti", "champion", version)

    promote("sliding_window")
    command = [sys.executable, "-m", "dti_pipeline.cli", "serve", "--port", "0", "--set", "serving.poll_seconds=0.2"]
    with subprocess.Popen(command, cwd=tracked.home, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line["url"] for line in map(json.loads, process.stderr) if line["event"] == "ready")
        moved = Event()

        def load() -> list[httpx.Response]:
            with httpx.Client(base_url=url, timeout=30) as client:
                answers = []
                while not moved.is_set():
                    answers.append(client.post("/v1/score", json=ASKED))
                return answers

        with ThreadPoolExecutor(3) as pool:
            loads = [pool.submit(load) for _ in range(2)]
            names = {httpx.get(f"{url}/health").json()["model"]: "sliding_window"}
            read = pool.submit(process.stderr.read)  # or the log fills its pipe
            try:
                promote("dti")
                until = time.monotonic() + 60
                while (health := httpx.get(f"{url}/health").json())["paradigm"] != "dti":
                    assert time.monotonic() < until
                    time.sleep(0.05)
                names[health["model"]] = "dti"
                time.sleep(0.2)
            finally:
                moved.set()
                answers = [answer for one in loads for answer in one.result()]
                process.send_signal(signal.SIGTERM)
                log = [json.loads(line) for line in read.result().splitlines()]
    assert process.returncode == 0
    assert {answer.status_code for answer in answers} == {200}
    assert {names[answer.headers["x-model"]] for answer in answers} == set(expected)
    for answer in answers:
        wanted = expected[names[answer.headers["x-model"]]]
        np.testing.assert_allclose(answer.json()["probabilities"], wanted, rtol=0, atol=1e-6)
    assert len([line for line in log if line["event"] == "request"]) == len(answers)
    assert {line["level"] for line in log} == {"info"}
