"""The service's addresses: ``/v1/score``, ``/health``, ``/metrics``, and ``/docs`` with the OpenAPI page."""

# Without `from __future__ import annotations`: FastAPI reads the annotations of its functions as they stand.
import asyncio
import logging
import re
import time
import uuid
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

from dti_pipeline.errors import InputError
from dti_pipeline.serving import requests, score
from dti_pipeline.serving.http.batcher import Batcher, Scores, TooLate
from dti_pipeline.serving.http.metrics import Metrics
from dti_pipeline.serving.http.model import Models
from dti_pipeline.serving.http.schema import ANSWER, ERROR, REQUEST
from dti_pipeline.serving.settings import ServingConfig
from dti_pipeline.serving.user_states import NotHeld

log = logging.getLogger(__name__)
#: What a client may call its request; another id is replaced.
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
BUSY = {"Retry-After": "1"}
CLIENT_GONE = 499  # as nginx counts a client that did not wait


class Refusal(Exception):
    """An answer other than 200: its status, one sentence, headers."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers or {}


class Service:
    """Answers ``/v1/score``: at most ``open_requests`` at a time, which bounds memory and waiting."""

    def __init__(self, settings: ServingConfig, models: Models, batcher: Batcher, metrics: Metrics) -> None:
        self.settings, self.models, self.batcher, self.metrics = settings, models, batcher, metrics
        self.open = 0  # changed by the event loop alone

    async def respond(self, request: Request) -> Response:
        """The answer to one request, counted and logged."""
        start = time.perf_counter()
        given = request.headers.get("x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        headers, candidates = {"X-Request-Id": name}, 0
        try:
            asked, scores = await self._admitted(request)
            status, candidates = 200, len(asked.candidates)
            answer = score.answer(asked, scores.probabilities)
            answer |= {} if scores.state is None else {"state": scores.state}
            headers["X-Model"] = scores.model
        except Refusal as refusal:
            status, answer = refusal.status, {"error": str(refusal)}
            headers |= refusal.headers
        except ClientDisconnect:
            status, answer = CLIENT_GONE, {}
        except Exception:
            log.exception("a request failed", extra={"fields": {"id": name}})
            status, answer = 500, {"error": "the service failed on this request: its log says where"}
        seconds = time.perf_counter() - start
        self.metrics.requests.labels(str(status)).inc()
        self.metrics.seconds.observe(seconds)
        fields = {"id": name, "status": status, "candidates": candidates, "ms": round(1000 * seconds, 1)}
        log.info("request", extra={"fields": fields})
        return Response(score.line(answer), status, headers, "application/json")

    async def _admitted(self, request: Request) -> tuple[requests.Request, Scores]:
        if self.models.current is None:
            raise Refusal(503, "the model is being loaded", BUSY)
        if self.open >= self.settings.open_requests:
            raise Refusal(429, f"{self.open} requests are open, as many as serving.open_requests allows", BUSY)
        self.open += 1
        self.metrics.open.set(self.open)
        try:
            asked = await self._read(request)
            return asked, await asyncio.wrap_future(self.batcher.submit(asked))
        except NotHeld as error:
            raise Refusal(409, str(error)) from None
        except InputError as error:
            raise Refusal(422, str(error)) from None
        except TooLate:
            sentence = "the request has waited longer than serving.patience_seconds"
            raise Refusal(429, sentence, BUSY) from None
        finally:
            self.open -= 1
            self.metrics.open.set(self.open)

    async def _read(self, request: Request) -> requests.Request:
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                body = await self._body(request)
        except TimeoutError:
            raise Refusal(
                408, "the request was not sent within serving.body_seconds", {"Connection": "close"}
            ) from None
        asked = requests.parse_line(body, "the request")
        most = self.settings.candidates
        if len(asked.candidates) > most:
            raise Refusal(413, f"the request has {len(asked.candidates)} candidates, serving.candidates allows {most}")
        return asked

    async def _body(self, request: Request) -> bytes:
        most, body = self.settings.body_bytes, bytearray()
        told = request.headers.get("content-length", "0")
        if not (told.isdecimal() and int(told) > most):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    break
            else:
                return bytes(body)
        raise Refusal(413, f"the request is longer than serving.body_bytes allows, {most}", {"Connection": "close"})


def application(service: Service) -> FastAPI:
    """The service as an ASGI application."""
    app = FastAPI(title="dti serve", summary="P(click) of candidate items, given a user's history.", version="1")

    described: dict[int | str, dict[str, Any]] = {
        200: {"description": "Probabilities, in the order of the candidates.", "content": _json(ANSWER)},
        408: {"description": "The request was not sent in time.", "content": _json(ERROR)},
        409: {"description": "The user's state is not held: send the whole history.", "content": _json(ERROR)},
        413: {"description": "The request is too long, or has too many candidates.", "content": _json(ERROR)},
        422: {
            "description": "Not a request, or not one to this model; `error` names the key.",
            "content": _json(ERROR),
        },
        429: {"description": "Too many requests; try again after Retry-After seconds.", "content": _json(ERROR)},
        503: {"description": "The model is being loaded.", "content": _json(ERROR)},
    }

    @app.post(
        "/v1/score",
        responses=described,
        openapi_extra={"requestBody": {"required": True, "content": _json(REQUEST)}},
    )
    async def score_candidates(request: Request) -> Response:
        """Scores one request; a line of the file that `dti score` takes."""
        return await service.respond(request)

    @app.get("/health")
    async def health() -> Response:
        """200 when requests are answered; 503 while the first model is loaded, or when scoring has ended."""
        served = service.models.current
        if served is None or not service.batcher.alive:
            return Response(score.line({"status": "loading" if served is None else "failed"}), 503, BUSY, _JSON)
        found = {"status": "ok", "model": served.name, "paradigm": served.paradigm}
        return Response(score.line(found), 200, None, _JSON)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters in Prometheus' text format."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


_JSON = "application/json"


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {_JSON: {"schema": schema}}
