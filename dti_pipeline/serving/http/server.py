"""``dti serve``: starts the parts, and stops them in order."""

from __future__ import annotations

import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from typing import Any

import uvicorn

from dti_pipeline.errors import InputError
from dti_pipeline.serving.http.app import Service, application
from dti_pipeline.serving.http.batcher import Batcher
from dti_pipeline.serving.http.metrics import Metrics
from dti_pipeline.serving.http.model import Models
from dti_pipeline.serving.settings import ServingConfig

log = logging.getLogger(__name__)


class Server:
    """One service on one address. ``find`` names the folder of the model, and is asked again while the service runs;
    ``stores`` is where `dti items` keeps states of items."""

    def __init__(
        self, settings: ServingConfig, find: Callable[[], Path], host: str, port: int, stores: Path | None = None
    ) -> None:
        self._settings = settings
        self._socket = _listening(host, port)
        self.url = f"http://{host if ':' not in host else f'[{host}]'}:{self._socket.getsockname()[1]}"
        self._metrics = Metrics()
        self._models = Models(find, self._metrics, settings, stores)
        self._batcher = Batcher(settings, lambda: self._models.current, self._metrics)
        self._error: InputError | None = None
        self._stopped = Event()
        service = Service(settings, self._models, self._batcher, self._metrics)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                application(service),
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
                lifespan="off",
                timeout_graceful_shutdown=math.ceil(settings.stop_seconds),
            )
        )

    def run(self) -> None:
        """Serve until SIGTERM, Ctrl-C or :meth:`stop`; open requests are then answered, new ones refused. Raises
        InputError where the first model cannot be served."""
        loading = Thread(target=self._load, name="models", daemon=True)
        try:
            with self._signals():
                loading.start()
                self._uvicorn.run(sockets=[self._socket])
        finally:
            self._stopped.set()
            self._batcher.stop(1.0)  # nobody waits for an answer any more
        if self._error is not None:
            raise self._error
        log.info("stopped")

    def stop(self) -> None:
        """End :meth:`run` as SIGTERM does; from any thread."""
        self._uvicorn.should_exit = True

    def _load(self) -> None:
        try:
            self._models.look()
        except InputError as error:
            self._error = error
            self.stop()
            return
        log.info("ready", extra={"fields": {"url": self.url}})
        if self._settings.poll_seconds:
            self._models.watch(self._settings.poll_seconds, self._stopped)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C stop the service also before uvicorn hears them, and after it are no error."""
        if current_thread() is not main_thread():
            yield
            return

        def stop(*_: Any) -> None:
            self.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens at the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except (OSError, OverflowError) as error:
        raise InputError(f"nothing can be served at {host} port {port}: {error}") from None
    return found
