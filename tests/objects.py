"""An S3-compatible store on loopback, and a line to it that breaks off."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

SECRET = "a-secret-that-nobody-prints"
#: What every S3 client reads; the address comes besides.
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


class Store:
    """A store with the bucket ``dti``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.environment = {**KEYS, "AWS_ENDPOINT_URL": url}
        self.client: Any = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key=SECRET, region_name="us-east-1"
        )
        self.client.create_bucket(Bucket="dti")

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket="dti", Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket="dti", Key=key)

    def get(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket="dti", Key=key)["Body"].read()
        return content

    def listed(self, below: str = "") -> list[str]:
        found = self.client.list_objects_v2(Bucket="dti", Prefix=below).get("Contents", [])
        return [one["Key"] for one in found]

    def clear(self) -> None:
        for key in self.listed():
            self.delete(key)


def server(port: int = 0) -> ThreadedMotoServer:
    """Start a server of object storage in a thread; port 0: any. Whoever starts it stops it."""
    # Its thread outlives the stderr that a test captures. Left alone it would log there, closed or not.
    log = logging.getLogger("werkzeug")
    log.addHandler(logging.NullHandler())
    log.setLevel(logging.ERROR)
    log.propagate = False
    started = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    started.start()
    return started


@contextmanager
def store() -> Iterator[Store]:
    started = server()
    try:
        yield Store("http://{}:{}".format(*started.get_host_and_port()))
    finally:
        started.stop()


class Line:
    """A relay to a store. ``passed`` counts bytes from there; after ``most`` it breaks off, once, and calls ``cut``."""

    def __init__(self, url: str) -> None:
        self.upstream = ("127.0.0.1", int(url.rpartition(":")[2]))
        self.passed, self.most = 0, 1 << 60
        self.cut: Callable[[], None] = lambda: None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                here, _ = self.listener.accept()
                there = socket.create_connection(self.upstream)
                threading.Thread(target=self._pass, args=(here, there, False), daemon=True).start()
                threading.Thread(target=self._pass, args=(there, here, True), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
                self.passed += len(data) * counted
                if counted and self.passed > self.most:
                    self.most = 1 << 60
                    self.cut()
                    break
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
