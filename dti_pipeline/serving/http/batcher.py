"""The thread that scores: it collects the requests that wait and scores them together."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread

from dti_pipeline.errors import InputError
from dti_pipeline.serving.http.metrics import Metrics
from dti_pipeline.serving.http.model import Served
from dti_pipeline.serving.requests import Request
from dti_pipeline.serving.settings import ServingConfig

log = logging.getLogger(__name__)


class TooLate(Exception):
    """A request has waited longer than its client is assumed to."""


@dataclass(frozen=True)
class Scores:
    """A request's probabilities, the name of the model that gave them, and that of its user's state."""

    probabilities: list[float]
    model: str
    state: str | None


@dataclass
class _Waiting:
    request: Request
    since: float
    answer: Future[Scores] = field(default_factory=Future)


class Batcher:
    """Scores requests in batches, in a thread of its own: a scorer is for one thread."""

    def __init__(self, settings: ServingConfig, model: Callable[[], Served | None], metrics: Metrics) -> None:
        self._settings, self._model, self._metrics = settings, model, metrics
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._next: _Waiting | None = None  # taken from the queue, too large for the batch before
        self._stopped = False
        self._thread = Thread(target=self._run, name="scoring", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request) -> Future[Scores]:
        """Scores to come. They end in InputError where the model refuses the request, TooLate, or what went wrong."""
        waiting = _Waiting(request, time.monotonic())
        self._queue.put(waiting)
        return waiting.answer

    def stop(self, seconds: float) -> None:
        """End the thread once what was submitted is answered, or give up on it after so many seconds."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stopped or self._next is not None:
            batch = self._collect()
            late = time.monotonic() - self._settings.patience_seconds
            ready = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            for one in ready:
                if one.since < late:
                    one.answer.set_exception(TooLate())
            self._answer([one for one in ready if one.since >= late])

    def _collect(self) -> list[_Waiting]:
        """The next requests: the first, and those that come within the wait and fit the batch."""
        first = self._next if self._next is not None else self._queue.get()
        self._next = None
        if first is None:
            self._stopped = True
            return []
        batch, size = [first], self._size(first)
        until = time.monotonic() + self._settings.wait_ms / 1000
        while size < self._settings.batch_interactions:
            try:
                one = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if one is None:
                self._stopped = True
                break
            size += self._size(one)
            if size > self._settings.batch_interactions:
                self._next = one
                break
            batch.append(one)
        return batch

    def _size(self, one: _Waiting) -> int:
        served = self._model()
        context = served.scorer.model.context if served is not None else len(one.request.history)
        return min(len(one.request.history), context) + len(one.request.candidates)

    def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        start = time.perf_counter()
        try:
            served = self._model()
            assert served is not None, "requests are let in when there is a model"
            found = served.scorer.score_each([one.request for one in batch])
        except Exception as error:
            log.exception("a batch failed")
            for one in batch:
                one.answer.set_exception(error)
            return
        self._metrics.batch.observe(len(batch))
        self._metrics.batch_seconds.observe(time.perf_counter() - start)
        for one, answer in zip(batch, found, strict=True):
            if isinstance(answer, InputError):
                one.answer.set_exception(answer)
            else:
                self._metrics.candidates.inc(len(answer.probabilities))
                one.answer.set_result(Scores(answer.probabilities, served.name, answer.state))
