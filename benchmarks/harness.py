"""What every benchmark shares: its rows as a table to read and as JSON to keep, and logs to measure on."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dti_pipeline import artifacts, lineage
from dti_pipeline.packing.store import TokenStore

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
#: What every row of a result says beside its measurement.
FACTS = ("hardware", "commit", "command")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--results",
        type=Path,
        default=ROOT / "reports" / "benchmarks",
        help="folder for the JSON (default: %(default)s; what docs/benchmark.md holds is kept in benchmarks/results)",
    )
    options.add_argument("--commit", help="of this code, where the copy at hand is no repository")
    return options


def publish(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    results: Path,
    launcher: str = "python",
    gpus: Sequence[str] | None = None,
    commit: str | None = None,
) -> None:
    """Print rows as a Markdown table; write them, with hardware, commit and command, to ``<results>/<name>.json``.

    ``launcher`` started the script; ``gpus`` are those that were used, by name (default: all of the machine's);
    ``commit`` is named where no repository knows it.
    """
    command = " ".join([launcher, f"benchmarks/{Path(sys.argv[0]).name}", *_shown(sys.argv[1:])])
    found = commit or str(lineage.commit() or "unknown")
    facts = dict(zip(FACTS, (lineage.hardware(gpus), found, command), strict=True))
    print(f"\n{name}: {facts['hardware']}, commit {facts['commit'][:12]}, `{command}`\n")
    print(table(rows))
    lines = [json.dumps({**row, **facts}) for row in rows]  # columns in their order, a row a line
    artifacts.write_text(results / f"{name}.json", "[\n" + ",\n".join(lines) + "\n]\n")


def named(name: str, home: Path | None) -> str:
    """Of a result: another one where it is of a project's own log (``--home``, which the command says)."""
    return name if home is None else f"{name}_home"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as Markdown; a row that lacks a column leaves its cell empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"| {' | '.join(column.replace('_', ' ') for column in columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def _shown(arguments: Sequence[str]) -> list[str]:
    """The arguments as another machine can use them: folders by their last name, those that change no
    figure left out."""
    kept = [Path(argument).name if Path(argument).is_dir() else argument for argument in arguments]
    for where in ("--results", "--scratch", "--commit", "--profile"):
        if where in kept:
            at = kept.index(where)
            del kept[at : at + 2]
    return kept


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def median_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU time of a call, after one that is not counted."""
    return statistics.median(alternate({"it": call}, repeats)["it"])


def alternate(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU times of several calls taken in turn, so that a busy moment hits all of them; the first turn is not kept.

    CPU time of this process is what one thread takes on a machine that does nothing else: callers use one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


#: Runs a command and says what it took. A process of its own and small, for a command inherits the peak memory of who
#: started it.
_MEASURE = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20]))
sys.exit(code)
"""


def run(command: Sequence[str], home: Path, **environment: str) -> tuple[float, float, float]:
    """A command in a process of its own: wall seconds, CPU seconds (its children's too), peak memory in GiB.

    Raises SystemExit with the command's own words where it fails.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *command],
        cwd=home,
        env={**os.environ, "DTI_HOME": str(home), "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    wall = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}")
    cpu, peak = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu, peak


def dti(*arguments: str) -> list[str]:
    """The ``dti`` command of this checkout."""
    return [sys.executable, "-m", "dti_pipeline.cli", *arguments]


def prepared(home: Path, paradigms: Sequence[str], settings: Sequence[str] = ()) -> None:
    """The demo's log, made, checked, tokenised and packed in ``home``."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    for stage in ("synth", "ingest", "validate", "tokenize"):
        run(dti(stage, *overrides), home)
    for paradigm in paradigms:
        run(dti("pack", "--paradigm", paradigm, *overrides), home)


def token_store(
    users: int, interactions: int, items: int = 4000, text_tokens: float = 9.1, seed: int = 7
) -> TokenStore:
    """A log in memory: ``interactions`` rows of ``users`` with a long tail of history lengths, random tokens.

    The defaults are MovieLens-1M's shape: about 165 rows a user, 10.1 tokens an interaction.
    """
    draw = np.random.default_rng(seed)
    weight = draw.lognormal(0.0, 1.0, users)
    history = np.maximum(1, np.round(weight / weight.sum() * interactions).astype(np.int64))
    position = np.arange(history.sum()) - np.repeat(np.cumsum(history) - history, history)
    lengths = np.clip(draw.poisson(text_tokens, items), 1, 32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    special = {"pad": 0, "sum": 1, "yes": 2, "no": 3}
    rows = len(position)
    return TokenStore(
        tokens=draw.integers(4, 4096, offsets[-1]).astype(np.int32),
        offsets=offsets,
        text=draw.integers(0, items, rows).astype(np.int32),
        label=draw.integers(0, 2, rows).astype(np.int8),
        split=np.zeros(rows, np.int8),
        position=position.astype(np.int32),
        prefix=np.zeros(0, np.int32),
        special=special,
    )
