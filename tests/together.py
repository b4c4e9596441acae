"""Two commands at once in one home: what comes of it is what comes of one after the other, in either order."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dti_pipeline import artifacts, cli
from dti_pipeline.pipeline import BACKTEST, STAGES, upstream

Command = tuple[str, ...]
#: A parameter of each stage that changes what it makes: the second of two commands has another value than the first.
OWN = {
    "synth": "synth.seed={}", "ingest": "split.min_history={}", "validate": "validation.min_rows={}",
    "tokenize": "tokens.max_text_tokens={}", "pack": "packing.seed={}", "train": "training.seed={}",
    "evaluate": "evaluation.bootstrap_samples={}", "compare": "comparison.margin=0.{}", "backtest": "training.seed={}",
}  # fmt: skip
#: Files that hold how long something took, or digests of such a file.
TIMED = {
    "manifest.json", "history.csv", "README.md", "metrics.json", "days.csv", "report.json", "comparison.html",
    "comparison.md", "comparison.json", "learning_curve.csv", "speedup.csv",
}  # fmt: skip
#: What stages import when they run.
ALL = (
    "dti_pipeline.events.ingest", "dti_pipeline.training.train", "dti_pipeline.validation.validate",
    "dti_pipeline.evaluation.compare", "dti_pipeline.evaluation.predict", "dti_pipeline.backtest.run",
)  # fmt: skip
FEW = ("dti_pipeline.events.ingest",)
_server = multiprocessing.get_context("forkserver")


def preload(modules: Sequence[str]) -> None:
    """Have these imported in the server, before the first process."""
    _server.set_forkserver_preload(["tests.together", *modules])


def command(name: str, variant: int) -> Command:
    """A stage, or all of them, in one of two variants."""
    paradigm = ("--paradigm", "dti") if name in ("pack", "train", "evaluate", "backtest") else ()
    if name == "clean":
        return ("clean",)
    own = OWN.values() if name == "run" else [OWN[name]]
    return (name, *paradigm, *(word for one in own for word in ("--set", one.format(3 + variant))))


def pairs() -> list[tuple[str, str]]:
    """Stages that make the same, or of which one makes what the other reads; and with each of them a whole run, and
    the removal of everything."""
    stages = (*STAGES, BACKTEST)
    found = [(one.name, one.name) for one in stages]
    found += [(other.name, one.name) for one in stages for other in upstream(one)]
    alone = [one.name for one in stages]
    return [
        *found,
        *(("run", name) for name in [*alone, "run"]),
        *(("clean", name) for name in [*alone, "run", "clean"]),
    ]


class Ended(NamedTuple):
    """How a command ended: its code, and what it said."""

    code: int | None
    said: str


@dataclass(frozen=True)
class Outcome:
    """What two commands leave."""

    codes: tuple[int | None, int | None]
    state: str  # digest of all outputs


def serial(home: Path, first: Command, second: Command) -> Outcome:
    """One after the other; of the second the home is left changed."""
    codes = tuple(_end(*_start(home, words)).code for words in (first, second))
    return Outcome(codes, state(home))


def together(home: Path, first: Command, second: Command, number: int) -> tuple[Outcome, list[Ended], bool]:
    """Both at once, the second a moment later that the number draws; whether one waited for the other."""
    one = _start(home, first)
    time.sleep(random.Random(f"{first} {second} {number}").choice([0, 0, 0.02, 0.1, 0.3, 1]))
    other = _start(home, second)
    ended = [_end(*one), _end(*other)]
    waited = any("waiting for it to end" in one.said or "wait for it, or end it" in one.said for one in ended)
    return Outcome((ended[0].code, ended[1].code), state(home)), ended, waited


def fresh(home: Path, at: Path) -> Path:
    """A copy of a home."""
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(home, at, symlinks=True)
    return at


def state(home: Path) -> str:
    """Digest of the outputs, each of them whole: their files but for those with times, of which the configuration and
    the scores count."""
    found: dict[str, Any] = {}
    for top in ("data", "models", "reports"):
        for path in sorted((home / top).rglob("*")):
            name = str(path.relative_to(home))
            if not path.is_file() or name.startswith("reports/data_docs") or path.name.startswith("."):
                continue
            if path.name == artifacts.MANIFEST:
                found[name] = artifacts.read(path.parent, "x").config
            elif path.name not in TIMED:
                found[name] = artifacts.file_digest(path)
    told = home / "reports" / "comparison.json"
    if told.exists():
        comparison = json.loads(told.read_text(encoding="utf-8"))
        found["auc"] = {name: row["auc"] for name, row in comparison["paradigms"].items()}
        found["events"] = comparison["protocol"]["events"]
    return json.dumps(found, sort_keys=True, indent=1)


def _start(home: Path, words: Command) -> tuple[Any, Path]:
    said = home.parent / f"{home.name}.{time.monotonic_ns()}.txt"
    process = _server.Process(target=_work, args=(home, words, said))
    process.start()
    return process, said


def _end(process: Any, said: Path) -> Ended:
    process.join(300)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"never ended: {said.read_text()}")
    return Ended(process.exitcode, said.read_text(encoding="utf-8"))


def _work(home: Path, words: Command, said: Path) -> None:
    with said.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ["DTI_HOME"] = str(home)
    sys.argv = ["dti", *words]
    cli.main()
