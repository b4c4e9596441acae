"""How long does a request to `dti serve` take, and how many are answered a second, by one client and by several?

The demo's model of one paradigm, trained for a few steps (weights do not change the time), in a process of its own with
one thread; clients in this process, each of which asks again as soon as it has its answer, over loopback. Requests hold
whole histories of the demo's test users. `requests_a_batch` is how many were scored together.

    python -m benchmarks.service                    # CPU, one minute
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq

from benchmarks.lib.harness import dti, parser, prepared, publish, run, sets
from benchmarks.serving import requests
from dti_pipeline.paths import Paths


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--paradigm", default="dti")
    options.add_argument("--candidates", type=int, nargs="+", default=(1, 10, 100))
    options.add_argument("--clients", type=int, nargs="+", default=(1, 8))
    options.add_argument("--requests", type=int, default=400, help="of each size (default: %(default)s)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        prepared(home)
        few = sets(["training.epochs=0.05", "training.evaluations=0", "tracking.enabled=false"])
        for stage in ("pack", "train"):
            run(dti(stage, "--paradigm", given.paradigm, *few), home)
        command = dti("serve", "--paradigm", given.paradigm, "--port", "0")
        environment = os.environ | {"DTI_HOME": str(home), "OMP_NUM_THREADS": "1"}
        log = home / "serve.log"
        with log.open("wb") as output, subprocess.Popen(command, env=environment, stderr=output) as process:
            try:
                url = _ready(process, log)
                sizes = [(size, clients) for size in given.candidates for clients in given.clients]
                rows = [measured(Paths(home), url, given.paradigm, *one, given.requests) for one in sizes]
            finally:
                process.terminate()
        if process.returncode:
            raise SystemExit(log.read_text())
    publish("service", rows, given)


def measured(paths: Paths, url: str, paradigm: str, size: int, clients: int, count: int) -> dict[str, Any]:
    """A row: ``count`` requests of ``size`` candidates by so many clients."""
    items = pq.read_table(paths.model(paradigm) / "items.parquet")["item_id"].to_pylist()
    asked = [json.dumps(one).encode() for one in requests(paths, size, count, items)]

    def client(mine: list[bytes]) -> list[float]:
        seconds = []
        with httpx.Client(base_url=url, timeout=60) as connection:
            for body in mine:
                begun = time.perf_counter()
                connection.post("/v1/score", content=body).raise_for_status()
                seconds.append(time.perf_counter() - begun)
        return seconds

    client(asked[:5])
    before, begun = _batches(url), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        taken = [one for mine in pool.map(client, [asked[i::clients] for i in range(clients)]) for one in mine]
    whole, batches = time.perf_counter() - begun, _batches(url) - before
    p50, p99 = (round(1000 * float(np.quantile(taken, q)), 2) for q in (0.5, 0.99))
    row = {"paradigm": paradigm, "candidates": size, "clients": clients, "requests_per_second": round(count / whole, 1)}
    row |= {"p50_ms": p50, "p99_ms": p99, "requests_a_batch": round(count / batches, 2)}
    print(*row.values(), flush=True)
    return row


def _batches(url: str) -> float:
    found = re.search(r"^dti_batch_requests_count (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """The service's address, once it answers."""
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if '"event": "ready"' in line:
                return str(json.loads(line)["url"])
        time.sleep(0.1)
    raise SystemExit(log.read_text())


if __name__ == "__main__":
    main()
