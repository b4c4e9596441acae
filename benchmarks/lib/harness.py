"""Options, tables and result files of all benchmarks, commands in processes of their own, and logs to measure on."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dti_pipeline import artifacts, lineage
from dti_pipeline.evaluation.tables import markdown_table
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import Paths

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
#: Columns of every row of a result beside its measurement.
FACTS = ("hardware", "commit", "command")
#: Options that change no figure, each with one value.
CIRCUMSTANCES = ("--results", "--scratch", "--commit", "--profile")


def parser(description: str | None, gpu: bool = False, home: bool = False) -> argparse.ArgumentParser:
    """The options of every benchmark; those of one for a ``gpu``, or of one that can measure a project's own log."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--results",
        type=Path,
        default=ROOT / "reports" / "benchmarks",
        help="folder for the JSON (default: %(default)s; what docs/benchmark.md holds is kept in benchmarks/results)",
    )
    options.add_argument("--commit", help="of this code, where the copy at hand is no repository")
    if gpu:
        options.add_argument("--tiny", action="store_true", help="a small case on the CPU, to test the script")
        options.add_argument("--budget-seconds", type=float, default=float("inf"), help="begin nothing beyond it")
    if home:
        options.add_argument("--home", type=Path, help="a project home with tokens; default: a log made here")
    return options


def publish(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    given: argparse.Namespace,
    gpus: Sequence[str] | None = None,
    launcher: str = "python",
    case: Sequence[str] = (),
) -> None:
    """Print rows as a table; write them, with hardware, commit and command, to ``<results>/<name>.json``.

    A result of a project's own log (``--home``) is named so. ``gpus``: names of those in use (default: all of the
    machine's); ``launcher`` started the script. ``case``: columns that name what a call measures: rows of the file that
    name something else stay as they are, with the facts of their own call, and these come after them.
    """
    name = f"{name}_home" if getattr(given, "home", None) else name
    command = " ".join([launcher, "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *_shown(sys.argv[1:])])
    found = given.commit or str(lineage.commit() or "unknown")
    facts = dict(zip(FACTS, (lineage.hardware(gpus), found, command), strict=True))
    print(f"\n{name}: {facts['hardware']}, commit {facts['commit'][:12]}, `{command}`\n")
    print(table(rows))
    path = given.results / f"{name}.json"
    kept = _of_other_cases(path, rows, case) if case else []
    lines = [json.dumps(row) for row in [*kept, *({**row, **facts} for row in rows)]]  # columns in order, a row a line
    artifacts.write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def _of_other_cases(path: Path, rows: Sequence[Mapping[str, Any]], case: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of a result's file whose ``case`` is none of ``rows``; those that name none are of an older form and go."""
    if not path.is_file():
        return []
    measured = [[row[column] for column in case] for row in rows]
    old = json.loads(path.read_text())
    return [row for row in old if set(case) <= set(row) and [row[column] for column in case] not in measured]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as Markdown; a row that lacks a column leaves its cell empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    body = [[_cell(row.get(column)) for column in columns] for row in rows]
    return markdown_table([column.replace("_", " ") for column in columns], body)


def _shown(arguments: Sequence[str]) -> list[str]:
    """The arguments as another machine can use them: folders by their last name, without :data:`CIRCUMSTANCES`."""
    kept = [Path(argument).name if Path(argument).is_dir() else argument for argument in arguments]
    for option in CIRCUMSTANCES:
        if option in kept:
            at = kept.index(option)
            del kept[at : at + 2]
    return kept


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


#: Runs a command and prints its CPU time and peak memory. A small process of its own, for a command inherits the peak
#: memory of the process that started it.
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


def sets(settings: Sequence[str]) -> list[str]:
    """``SECTION.KEY=VALUE`` as options of ``dti``."""
    return [part for setting in settings for part in ("--set", setting)]


def prepared(home: Path, settings: Sequence[str] = ()) -> None:
    """The demo's params.yaml and its log, made, checked and tokenised, in ``home``."""
    (home / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for stage in ("synth", "ingest", "validate", "tokenize"):
        run(dti(stage, *sets(settings)), home)


def log_of(home: Path | None, users: int, interactions: int) -> TokenStore:
    """The tokens of a project home, or of a generated log where there is none."""
    return TokenStore.open(Paths(home.resolve()).tokens) if home else token_store(users, interactions)


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
        **dict.fromkeys(("position", "request", "known"), position.astype(np.int32)),
        prefix=np.zeros(0, np.int32),
        special=special,
        vocabulary=4096,
    )
