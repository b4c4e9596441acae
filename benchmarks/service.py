"""How long does a request over HTTP take, and how many are answered a second: by `dti serve`, and by MLflow's server?

The demo's model of one paradigm, trained for a few steps (weights do not change the time), in a process of its own with
one thread; clients in this process, over loopback. Requests hold whole histories of the demo's test users. Loads: a
client, or several, each of which asks again as soon as it has its answer; then requests that come at random at a share
of the most that were answered a second, timed from when they were due; of `dti serve` also for some minutes, then bad
requests, and eight clients while the model changes. `requests_a_batch` is how many were scored together,
`memory_before_mib` and `memory_mib` what the server held before the load and when it had ended. Every answer is
compared with `dti score`'s, and a request that is lost or refused ends the benchmark.

    python -m benchmarks.service                    # CPU, fifteen minutes
    python -m benchmarks.service --services dti user_states --minutes 0 --bad 0 --changes 0
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.lib.harness import dti, parser, prepared, publish, run, sets
from benchmarks.serving import requests
from dti_pipeline import paradigms
from dti_pipeline.paradigms import Paradigm
from dti_pipeline.paths import Paths
from dti_pipeline.serving.item_store import NAME, digest_of
from dti_pipeline.serving.scorer import Scorer

#: Of the most that were answered a second.
SHARE = 0.7
#: The same, of minutes on end: other work on the machine must not make them too many.
STEADY = 0.4
#: Connections of requests that come when they are due.
CONNECTIONS = 32
#: Seconds within which a change of the folder has to become a change of the model.
PATIENCE = 300.0
BAD = (b"", b"{", b"[1]", b'{"history": []}', b'{"history": [], "candidates": [{}]}', b"[" * 5000, b"\xff" * 100)
Row = dict[str, Any]


#: Services of `--services`: their name in a row, and their settings.
SERVICES = {
    "dti": ("dti serve", ()),
    "item_states": ("dti serve, item states", ("serving.item_states=10000",)),
    "user_states": ("dti serve, user states", ("serving.user_states_mib=1024",)),
}


@dataclass(frozen=True)
class Service:
    """A server that answers."""

    name: str
    url: str
    path: str
    process: int

    def body(self, asked: Any) -> bytes:
        return json.dumps(asked if self.path == "/v1/score" else {"dataframe_records": [asked]}).encode()

    def probabilities(self, answer: httpx.Response) -> list[float]:
        found = answer.raise_for_status().json()
        return found["probabilities"] if self.path == "/v1/score" else found["predictions"][0]

    def batches(self) -> float:
        if self.path != "/v1/score":
            return float("nan")
        text = httpx.get(f"{self.url}/metrics").text
        found = re.search(r"^dti_batch_requests_count (\S+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    def memory_mib(self) -> int:
        whole = psutil.Process(self.process)
        return round(sum(one.memory_info().rss for one in [whole, *whole.children(recursive=True)]) / 2**20)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--paradigm", default="dti", choices=paradigms.names())
    options.add_argument("--candidates", type=int, nargs="+", default=(1, 10, 100))
    options.add_argument("--clients", type=int, nargs="+", default=(1, 8))
    options.add_argument("--requests", type=int, default=400, help="of each load (default: %(default)s)")
    options.add_argument("--minutes", type=float, default=3.0, help="of a steady load (default: %(default)s)")
    options.add_argument("--bad", type=int, default=10_000, help="bad requests (default: %(default)s)")
    options.add_argument("--services", nargs="+", default=("dti", "mlflow"), choices=(*SERVICES, "mlflow"))
    options.add_argument("--changes", type=int, default=10, help="seconds of load while the model changes")
    given = options.parse_args()
    if useless := [name for name in given.services if not keeps(paradigms.named(given.paradigm), name)]:
        options.error(f"--services {' '.join(useless)}: a model of {given.paradigm} keeps no such states")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        prepared(home)
        few = sets(["training.epochs=0.05", "training.evaluations=0"])
        paths, models = Paths(home), []
        run(dti("pack", "--paradigm", given.paradigm, *few), home)
        for seed in (7, 8):  # the second one is what MLflow serves
            run(dti("train", "--paradigm", given.paradigm, *few, *sets([f"training.seed={seed}"])), home)
            models.append(Path(shutil.copytree(paths.model(given.paradigm), home / f"model {seed}")))
        scorer = Scorer.load(models[1], "cpu")
        made = {size: requests(paths, size, given.requests, list(scorer.titles)) for size in given.candidates}
        for name in given.services:
            if name == "mlflow":
                service = served_by_mlflow(paths, given.paradigm)
            else:
                service = served(paths, models[1], *SERVICES[name])
            with service as running:
                for size, asked in made.items():
                    if name == "user_states":
                        rows += loads(running, size, of_users(asked), None, given.clients)
                    else:
                        rows += loads(running, size, asked, scorer.score(asked), given.clients)
                if name == "dti" and given.minutes:
                    size = given.candidates[0]
                    ours = [one for one in rows if (one["service"], one["candidates"]) == (running.name, size)]
                    pace = STEADY * max(one["requests_per_second"] for one in ours)
                    rows.append(steady(running, made[size], scorer, pace, given.minutes))
                if name == "dti" and given.bad:
                    rows.append(bad_requests(running, given.bad))
        if "dti" in given.services and given.changes:
            rows.append(changes(paths, models, made[given.candidates[0]], given.changes))
    publish("service", rows, given)


def keeps(paradigm: Paradigm, service: str) -> bool:
    """Whether a model of the paradigm has the states that a service is named for."""
    of_items = paradigm.items_stand_alone
    return {"item_states": of_items, "user_states": paradigm.streams and not of_items}.get(service, True)


def of_users(asked: list[Any]) -> list[Any]:
    """The same, by users who ask again and again, each time after one thing more: as many as there are histories."""
    found = []
    for number, one in enumerate(asked):
        events = one["history"]
        for end in range(max(0, len(events) - 4), len(events) + 1):
            found.append(one | {"user_id": str(number), "history": events[:end]})
    return found[: len(asked)]


def changes(paths: Paths, models: list[Path], asked: list[Any], seconds: float) -> Row:
    """A row of eight clients while the folder that is served leads to one model and then to the other. Every request
    has to be answered, by the model that the answer names."""
    expected = {digest_of(model)[:NAME]: Scorer.load(model, "cpu").score(asked) for model in models}
    current, aside = paths.home / "current", paths.home / "next"
    current.symlink_to(models[0])
    taken: list[tuple[float, httpx.Response]] = []
    moved = 0
    with served(paths, current, "dti serve", ("serving.poll_seconds=0.2",)) as service:
        bodies = [service.body(one) for one in asked]

        def ask() -> list[tuple[float, httpx.Response]]:
            nonlocal moved
            begun = time.perf_counter()
            with ThreadPoolExecutor(1) as one:
                while (passed := time.perf_counter() - begun) < seconds or (
                    passed < PATIENCE and len(named(taken)) < 2
                ):
                    load = one.submit(timed, service, bodies, 8)
                    while not load.done():
                        moved += 1
                        aside.symlink_to(models[moved % 2])
                        aside.replace(current)
                        time.sleep(1.0)
                    taken.extend(load.result())
            return taken

        found = row(service, "8 clients, the model changes", len(asked[0]["candidates"]), ask, None)
        for number, (_, answer) in enumerate(taken):
            wanted = expected[answer.raise_for_status().headers["X-Model"]][number % len(asked)]
            np.testing.assert_allclose(service.probabilities(answer), wanted, rtol=0, atol=1e-5)
    changed = sum(one != two for one, two in pairwise(answer.headers["X-Model"] for _, answer in taken))
    print(f"{len(taken):,} requests, {moved} changes of the folder, {changed} of the model, no answer lost or wrong")
    assert named(taken) == set(expected)
    return found


def named(taken: list[tuple[float, httpx.Response]]) -> set[str]:
    """The models that have answered."""
    return {answer.headers.get("X-Model", "none") for _, answer in taken}


def loads(
    service: Service, size: int, asked: list[Any], expected: list[list[float]] | None, clients: tuple[int, ...]
) -> list[Row]:
    """Rows of requests of ``size`` candidates."""
    timed(service, [service.body(one) for one in asked[:5]], 1)
    rows = []
    bodies = [service.body(one) for one in asked]
    for count in clients:
        load = f"{count} client{'s' if count > 1 else ''}"
        rows.append(row(service, load, size, lambda count=count: timed(service, bodies, count), expected))
    due = at_random(SHARE * max(one["requests_per_second"] for one in rows), len(bodies))
    load = f"{SHARE:.0%} of the most"
    return [*rows, row(service, load, size, lambda: timed(service, bodies, CONNECTIONS, due), expected)]


def steady(service: Service, asked: list[Any], scorer: Scorer, pace: float, minutes: float) -> Row:
    """A row of so many requests a second, the same ones again and again."""
    count = math.ceil(60 * minutes * pace)
    bodies, expected = [service.body(one) for one in asked], scorer.score(asked)
    again = [number % len(asked) for number in range(count)]
    load, size = f"{STEADY:.0%} of the most, {minutes:g} minutes", len(asked[0]["candidates"])
    due = at_random(pace, count)
    ask = partial(timed, service, [bodies[number] for number in again], CONNECTIONS, due)
    return row(service, load, size, ask, [expected[number] for number in again])


def at_random(pace: float, count: int) -> np.ndarray:
    """Seconds from now at which requests are due."""
    return np.cumsum(np.random.default_rng(1).exponential(1 / pace, count))


def row(
    service: Service,
    load: str,
    size: int,
    ask: Callable[[], list[tuple[float, httpx.Response]]],
    expected: list[list[float]] | None,
) -> Row:
    """A row of one load, whose answers are compared."""
    memory, before, begun = service.memory_mib(), service.batches(), time.perf_counter()
    taken = ask()
    whole, batches = time.perf_counter() - begun, service.batches() - before
    for _, answer in taken:
        assert expected is None or answer.status_code == 200, answer.text
    for (_, answer), wanted in zip(taken, expected or (), strict=expected is not None):
        np.testing.assert_allclose(service.probabilities(answer), wanted, rtol=0, atol=1e-5)
    p50, p99 = (round(1000 * float(np.quantile([seconds for seconds, _ in taken], q)), 2) for q in (0.5, 0.99))
    found: Row = {"service": service.name, "load": load, "candidates": size}
    found |= {"requests_per_second": round(len(taken) / whole, 1), "p50_ms": p50, "p99_ms": p99}
    found |= {"requests_a_batch": round(len(taken) / batches, 2) if batches > 0 else None}
    found |= {"memory_before_mib": memory, "memory_mib": service.memory_mib()}
    print(*found.values(), flush=True)
    return found


def timed(
    service: Service, bodies: list[bytes], connections: int, due: np.ndarray | None = None
) -> list[tuple[float, httpx.Response]]:
    """Seconds and answer of each request, in their order; from when each is ``due``, seconds from now, where told."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    with (
        httpx.Client(base_url=service.url, timeout=60, limits=limits) as client,
        ThreadPoolExecutor(connections) as pool,
    ):
        begun = time.perf_counter()

        def ask(number: int) -> tuple[float, httpx.Response]:
            start = time.perf_counter() if due is None else begun + float(due[number])
            time.sleep(max(0.0, start - time.perf_counter()))
            kind = {"Content-Type": "application/json"}
            answer = client.post(service.path, content=bodies[number], headers=kind)
            return time.perf_counter() - start, answer

        return list(pool.map(ask, range(len(bodies))))


def bad_requests(service: Service, count: int) -> Row:
    """A row of requests that are none, each of which has to be told so."""
    bodies = [BAD[i % len(BAD)] for i in range(count)]
    taken: list[httpx.Response] = []

    def ask() -> list[tuple[float, httpx.Response]]:
        found = timed(service, bodies, 8)
        taken.extend(answer for _, answer in found)
        return found

    found = row(service, "8 clients, bad requests", 0, ask, None)
    assert {answer.status_code for answer in taken} == {422}
    assert httpx.get(f"{service.url}/health").status_code == 200
    return found


@contextmanager
def served(paths: Paths, model: Path, name: str, settings: Sequence[str] = ()) -> Iterator[Service]:
    with started(paths, dti("serve", "--model", str(model), "--port", "0", *sets(settings))) as (process, log):

        def ready() -> str | None:
            lines = [line for line in log.read_text().splitlines() if '"event": "ready"' in line]
            return json.loads(lines[0])["url"] if lines else None

        yield Service(name, until(process, log, ready), "/v1/score", process.pid)
    if process.returncode:
        raise SystemExit(log.read_text())


@contextmanager
def served_by_mlflow(paths: Paths, paradigm: str) -> Iterator[Service]:
    url = "http://127.0.0.1:5077"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/dti@{paradigm}"]
    command += ["--env-manager", "local"]
    with started(paths, [*command, "--port", url.rpartition(":")[2]]) as (process, log):

        def ready() -> str | None:
            try:
                return url if httpx.get(f"{url}/ping").status_code == 200 else None
            except httpx.TransportError:
                return None

        yield Service("mlflow models serve", until(process, log, ready), "/invocations", process.pid)


@contextmanager
def started(paths: Paths, command: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A server in processes of its own, with one thread, and its log."""
    more = {"DTI_HOME": str(paths.home), "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": paths.tracking_uri}
    more["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    log = paths.home / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env=os.environ | more, stdout=output, stderr=output, cwd=paths.home, start_new_session=True
        ) as process,
    ):
        try:
            yield process, log
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGTERM)


def until(process: subprocess.Popen[bytes], log: Path, ready: Callable[[], str | None]) -> str:
    """The service's address, once it answers."""
    while process.poll() is None:
        if found := ready():
            return found
        time.sleep(0.1)
    raise SystemExit(log.read_text())


if __name__ == "__main__":
    main()
