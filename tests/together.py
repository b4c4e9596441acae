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
#: Files that hold how long something took, or digests of such a file; pictures may show it.
TIMED = {
    "manifest.json", "history.csv", "README.md", "metrics.json", "days.csv", "report.json", "comparison.html",
    "comparison.md", "comparison.json", "learning_curve.csv", "speedup.csv", "state.json", "day.json",
    "dti.json", ".svg", ".png",
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
    """Stages that make the same, or of which one makes what the other reads; beside each of them a whole run, and the
    removal of everything while it is at work."""
    stages = (*STAGES, BACKTEST)
    found = [(one.name, one.name) for one in stages]
    found += [(other.name, one.name) for one in stages for other in upstream(one)]
    alone = [one.name for one in stages]
    return [
        *found,
        *(("run", name) for name in [*alone, "run"]),
        *((name, "clean") for name in [*alone, "run", "clean"]),
    ]


class Ended(NamedTuple):
    """How a command ended: its code, and what it said."""

    code: int | None
    said: str


@dataclass(frozen=True)
class Outcome:
    """What two commands leave."""

    codes: tuple[int | None, int | None]
    state: str
    said: str
    seconds: float = 0.0  # of the first

    @property
    def waited(self) -> bool:
        return "waiting for it to end" in self.said or self.refused

    @property
    def refused(self) -> bool:
        return "wait for it, or end it" in self.said


def serial(home: Path, first: Command, second: Command) -> Outcome:
    """One after the other."""
    begin = time.monotonic()
    one = _end(*_start(home, first))
    seconds = time.monotonic() - begin
    other = _end(*_start(home, second))
    return Outcome((one.code, other.code), state(home), one.said + other.said, seconds)


def together(home: Path, first: Command, second: Command, number: int, seconds: float) -> Outcome:
    """Both at once, the second while the first, which takes so long, is at work: at a moment that the number draws."""
    one = _start(home, first)
    time.sleep(random.Random(f"{first} {second} {number}").uniform(0, seconds * 0.8) if number else 0)
    other = _start(home, second)
    ended = [_end(*one), _end(*other)]
    return Outcome((ended[0].code, ended[1].code), state(home), ended[0].said + ended[1].said)


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
            elif not {path.name, path.suffix} & TIMED:
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
