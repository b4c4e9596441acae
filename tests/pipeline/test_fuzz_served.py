"""Whatever a line or a body is: `dti score --stream` and `dti serve` answer it, and go on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

import httpx
import pytest

from dti_pipeline.config import ServingConfig
from dti_pipeline.errors import CheckFailed
from dti_pipeline.paths import Paths
from dti_pipeline.serving import score
from dti_pipeline.serving.http.server import Server
from dti_pipeline.serving.scorer import Scorer
from tests.code.test_fuzz_words import BAD_LINES, GOOD_REQUEST, LINE
from tests.fuzz import counts, each


@pytest.fixture(scope="module")
def client(small_home: Paths) -> Iterator[httpx.Client]:
    """Of a service in a thread of this process."""
    server = Server(ServingConfig(poll_seconds=0, body_bytes=200_000), lambda: small_home.model("dti"), "127.0.0.1", 0)
    thread = Thread(target=server.run)
    thread.start()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        while client.get("/health").status_code != httpx.codes.OK:
            assert thread.is_alive()
        yield client
        server.stop()
        thread.join(30)


@counts(30, 5000)
def test_every_line_of_a_stream_is_answered(small_home: Paths, examples: int) -> None:
    scorer = Scorer.load(small_home.model("dti"))
    good = GOOD_REQUEST + b"\n"

    def check(line: bytes) -> None:
        out = io.BytesIO()
        with suppress(CheckFailed):
            score.score_stream(io.BytesIO(line.replace(b"\n", b" ") + b"\n" + good), scorer, out)
        first, second = map(json.loads, out.getvalue().splitlines())
        assert first.keys() & {"probabilities", "error"}
        assert "probabilities" in second

    each(LINE, examples, check, BAD_LINES)


@counts(20, 3000)
def test_every_body_is_answered(client: httpx.Client, examples: int) -> None:
    """With probabilities or one sentence: code 500 would be a fault of ours."""

    def check(body: bytes) -> None:
        answer = client.post("/v1/score", content=body)
        assert answer.status_code in (200, 413, 422), answer.text
        assert answer.json().keys() & {"probabilities", "error"}

    each(LINE, examples, check, BAD_LINES)
    assert client.post("/v1/score", content=GOOD_REQUEST).status_code == httpx.codes.OK
