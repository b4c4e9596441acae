"""A service in a thread of this process, and what tests ask of it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from dti_pipeline.config import ServingConfig
from dti_pipeline.serving.http.server import Server

#: Paradigms of the models that the fixture `served` trains.
NAMES = ("sliding_window", "dti_isolated")


@dataclass
class Running:
    """A service in a thread of this process."""

    server: Server
    client: httpx.Client
    thread: Thread

    def ask(self, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post("/v1/score", content=content, headers=headers)

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@contextmanager
def serving(find: Callable[[], Path], ready: bool = True, **settings: Any) -> Iterator[Running]:
    """A service as ``settings`` say; a busy machine makes no request too late unless they say after how long."""
    server = Server(ServingConfig(**{"poll_seconds": 0.0, "patience_seconds": 60.0, **settings}), find, "127.0.0.1", 0)
    thread = Thread(target=server.run)
    thread.start()
    with httpx.Client(base_url=server.url, timeout=30) as client:
        try:
            while ready and client.get("/health").status_code != 200:
                assert thread.is_alive()
                time.sleep(0.02)
            yield Running(server, client, thread)
        finally:
            server.stop()
            thread.join(30)
    assert not thread.is_alive()


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)
