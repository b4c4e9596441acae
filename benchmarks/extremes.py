"""Logs and loads of unusual shape: seconds of the processor and memory of each stage, and whether memory is flat.

One user with a million interactions, a million users with one each, a catalogue of a million items; a training,
requests to `dti score` and `dti serve`, and bad ones to `dti serve`, each of which it has to refuse. Memory is flat
where the last third of a process's time holds no more than the second, but for a twentieth.

    python -m benchmarks.extremes --rows 1000000 --requests 10000 --minutes 60
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.lib.harness import dti, parser, publish, sets

SETTINGS = (
    "events.source=table", "events.path=log.parquet", "tracking.enabled=false", "validation.required=false",
    "split.rule=user_order", "split.min_history=0", "packing.context=10", "packing.targets=20",
    "packing.row_length=512", "tokens.max_text_tokens=8", "model.hidden_size=32", "model.heads=2", "model.kv_heads=2",
    "model.intermediate_size=48", "model.layers=2", "training.device=cpu", "training.evaluations=0",
    "training.checkpoint_seconds=60",
)  # fmt: skip
STAGES = ("ingest", "validate", "tokenize", "pack --paradigm dti")
#: What is measured beside the logs.
LOADS = ("training", "requests", "bad requests")
START = 1_577_836_800


class Cost(NamedTuple):
    """Of a process: seconds by the clock and of the processor; GiB of memory, the most, and in thirds of its time."""

    seconds: float
    cpu_seconds: float
    peak: float
    second: float
    last: float

    def row(self, case: str, step: str) -> dict[str, Any]:
        flat = "yes" if self.last <= self.second * 1.05 else "no"
        named = {
            "case": case,
            "step": step,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(self.cpu_seconds, 1),
        }
        return named | {"peak_memory_gib": round(self.peak, 2), "flat": flat}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--requests", type=int, default=10_000)
    options.add_argument("--minutes", type=float, default=60.0, help="of training (default: %(default)s)")
    options.add_argument("--only", nargs="+", choices=[*LOGS, *LOADS], help="default: all")
    options.add_argument("--scratch", type=Path, help="folder with room for the logs (default: the system's)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        publish("extremes", list(measure(given, Path(scratch))), given)


def measure(given: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    wanted = given.only or [*LOGS, *LOADS]
    for name in LOGS:
        if name in wanted:
            home = scratch / name.replace(" ", "-")
            home.mkdir()
            more = write_log(home, name, given.rows)
            for stage in STAGES:
                yield watched(dti(*stage.split(), *sets([*SETTINGS, *more])), home).row(name, stage.split()[0])
    if set(LOADS) & set(wanted):
        home = scratch / "served"
        home.mkdir()
        write_log(home, "many items", min(given.rows, 200_000))
        for stage in STAGES:
            watched(dti(*stage.split(), *sets(SETTINGS)), home)
        short = [*SETTINGS, "training.epochs=0.02"]
        if "training" in wanted:
            endless = dti("train", "--paradigm", "dti", *sets([*SETTINGS, "training.epochs=1000"]))
            yield watched(endless, home, until=60 * given.minutes).row("training", f"{given.minutes:g} minutes")
        if {"requests", "bad requests"} & set(wanted):
            watched(dti("train", "--paradigm", "dti", *sets(short)), home)
        if "requests" in wanted:
            lines = good_requests(given.requests)
            (home / "requests.jsonl").write_bytes(b"\n".join(lines))
            score = dti("score", "requests.jsonl", "--paradigm", "dti", "--out", "answers.jsonl")
            yield watched(score, home).row(f"{len(lines):,} requests", "score")
            yield served(home, lines, 200).row(f"{len(lines):,} requests", "serve")
        if "bad requests" in wanted:
            lines = bad_requests(given.requests)
            yield served(home, lines, 422).row(f"{len(lines):,} bad requests", "serve")


def good_requests(count: int) -> list[bytes]:
    draw = np.random.default_rng(7)

    def item(**more: Any) -> dict[str, Any]:
        return {"item_id": str(draw.integers(0, 10_000)), **more}

    return [
        json.dumps({"history": [item(label=1) for _ in range(10)], "candidates": [item() for _ in range(5)]}).encode()
        for _ in range(count)
    ]


def bad_requests(count: int) -> list[bytes]:
    """Each another one: what a service kept of any would grow."""
    kinds = (
        '{{"user_id": "{0}", "history": [], "candidates": [{{}}]}}',
        '{{"user_id": "{0}", "history": [{{"item_id": "{0}", "label": 1{0}}}], "candidates": []}}',
        '{{"key {0}": 1}}',
        '{{"user_id": "{0}", "history": [',
        "[{0}]",
        "[" * 5000 + "{0}",
        "",
    )
    return [kinds[number % len(kinds)].format(number).encode() for number in range(count)]


def served(home: Path, bodies: Sequence[bytes], status: int) -> Cost:
    """The cost of `dti serve` that is asked one thing after another, and answers each with ``status``."""

    def ask(said: Path) -> None:
        until = time.monotonic() + 120
        while not (ready := [line for line in said.read_text().splitlines() if '"event": "ready"' in line]):
            assert time.monotonic() < until, "the service was never ready"
            time.sleep(0.2)
        with httpx.Client(base_url=json.loads(ready[0])["url"], timeout=60) as client:
            for body in bodies:
                answer = client.post("/v1/score", content=body)
                assert answer.status_code == status, answer.text

    return watched(dti("serve", "--paradigm", "dti", "--port", "0"), home, meanwhile=ask)


def watched(
    command: Sequence[str], home: Path, until: float | None = None, meanwhile: Callable[[Path], None] | None = None
) -> Cost:
    """Run a command in a home; end it after ``until`` seconds, or when ``meanwhile`` has returned, which is given the
    file of what the command says."""
    begin = time.monotonic()
    samples: list[tuple[float, float]] = []
    told = False
    with (home / "said.txt").open("w") as said, ThreadPoolExecutor(1) as pool:
        process = subprocess.Popen(
            command, cwd=home, env={**os.environ, "DTI_HOME": str(home)}, stdout=said, stderr=said
        )
        work = None if meanwhile is None else pool.submit(meanwhile, home / "said.txt")
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            passed = time.monotonic() - begin
            samples.append((passed, resident(process.pid)))
            over = (until is not None and passed > until) or (work is not None and work.done())
            if over and not told:
                process.terminate()  # once: a command that is ending can be killed by the next one
                told = True
            time.sleep(0.2)
    if work is not None:
        work.result()  # what went wrong in it
    if os.waitstatus_to_exitcode(status) and until is None:
        raise SystemExit(f"{' '.join(command[2:5])} failed: {(home / 'said.txt').read_text()[-2000:]}")
    seconds = time.monotonic() - begin
    thirds = [max((gib for at, gib in samples if low <= 3 * at / seconds < low + 1), default=0.0) for low in range(3)]
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / (1 << 20), thirds[1], thirds[2])


def resident(process: int) -> float:
    """Memory of a process, in GiB, less what it has only mapped from files; 0 where it has just ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / (1 << 20)


def write_log(home: Path, name: str, rows: int) -> list[str]:
    """``log.parquet``, and ``items.parquet`` where there is a catalogue; the settings that it needs."""
    draw, number = np.random.default_rng(7), np.arange(rows)
    user, item = LOGS[name](number, draw)
    columns = {"user_id": user, "item_id": item, "rating": draw.integers(1, 6, rows), "timestamp": START + 60 * number}
    pq.write_table(pa.table(columns), home / "log.parquet")
    if name != "many items":
        return []
    titles = [f"title {number} of many" for number in range(rows)]
    pq.write_table(pa.table({"item_id": number, "item_text": titles}), home / "items.parquet")
    return ["events.items_path=items.parquet"]


#: For each log the users and items of its rows.
LOGS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "one user": lambda number, draw: (np.zeros_like(number), draw.integers(0, 10_000, len(number))),
    "many users": lambda number, draw: (number, draw.integers(0, 10_000, len(number))),
    "many items": lambda number, draw: (number // 100, draw.permutation(number)),
}


if __name__ == "__main__":
    main()
