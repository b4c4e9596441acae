"""Stages in processes that are killed: at a moment, at one of their calls of the file system, at a training's step.

Processes are forked from a server that has imported everything: a kill costs less than an import.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dti_pipeline import artifacts, pipeline
from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.training import checkpoint
from dti_pipeline.training.progress import Event, Stepped

#: Python tells its hooks of these before it does them.
CALLS = {
    "open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "shutil.rmtree", "shutil.copyfile",
    "ctypes.dlsym",
}  # fmt: skip
#: What stages import when they run.
FEW = ("dti_pipeline.events.ingest", "dti_pipeline.training.train", "dti_pipeline.tracking.mlflow_training")
ALL = (*FEW, "dti_pipeline.validation.validate", "dti_pipeline.evaluation.compare", "dti_pipeline.evaluation.predict")
#: Files that hold how long something took, of stages that say so; and what a look-up leaves.
TIMED = {"train": {"manifest.json", "history.csv", "README.md"}, "evaluate": {"manifest.json", "metrics.json"}}
_server = multiprocessing.get_context("forkserver")


def preload(modules: Sequence[str]) -> None:
    """Have these imported in the server, before the first process: a stage's kills are then in its work."""
    _server.set_forkserver_preload(["tests.killing", "mlflow.pyfunc", *modules])


@dataclass(frozen=True)
class Undisturbed:
    """A stage that ran to its end: what it took, and what it left."""

    seconds: float
    calls: int
    outputs: Mapping[str, str]  # digest by file
    names: frozenset[str]  # of all that the home holds


@dataclass
class Attack:
    """A home and one of its stages, to be killed and run again."""

    config: Config
    paths: Paths
    stage: pipeline.Stage[object]
    paradigm: str | None

    def undisturbed(self) -> Undisturbed:
        begin = time.monotonic()
        calls = self._run()
        return Undisturbed(time.monotonic() - begin, calls, self.outputs(), self.names())

    def kill(self, number: int, known: Undisturbed) -> bool:
        """Start the stage and kill it, at a point that the number draws; False where it ended before.

        Even numbers draw a moment, odd ones a call; every second time there is no earlier output.
        """
        draw = random.Random(f"{self.stage.name} {number}")
        if draw.random() < 0.5:
            for folder in self.folders():
                shutil.rmtree(folder, ignore_errors=True)
        if number % 2:
            return self._start(die_at=draw.randint(1, max(1, known.calls))) == -signal.SIGKILL
        return self._start(seconds=draw.uniform(0, known.seconds)) == -signal.SIGKILL

    def kill_at(self, call: int) -> bool:
        """Start the stage and kill it at this call; False where it ended before."""
        return self._start(die_at=call) == -signal.SIGKILL

    def again(self) -> int:
        """Run the stage to its end; how many calls it took."""
        return self._run()

    def folders(self) -> list[Path]:
        return [self.paths.resolve(out.format(paradigm=self.paradigm)) for out in self.stage.outs]

    def outputs(self) -> dict[str, str]:
        """Digests of the stage's files, but for those that hold times and hidden ones, which nobody reads."""
        found = {}
        for out in self.folders():
            for path in [out] if out.is_file() else out.rglob("*"):
                hidden = path.name.startswith(".") or path.name in TIMED.get(self.stage.name, ())
                if path.is_file() and not hidden:
                    found[str(path.relative_to(self.paths.home))] = artifacts.file_digest(path)
        return found

    def names(self) -> frozenset[str]:
        """All files of the home, but for the pages that are named by a time, and the tracker's, named by its ids."""
        home = self.paths.home
        found = (path.relative_to(home) for path in home.rglob("*"))
        return frozenset(
            str(p) for p in found if p.parts[0] != "mlartifacts" and p.parts[:2] != ("reports", "data_docs")
        )

    def _run(self) -> int:
        counted = _server.Value("l", 0)
        code = self._start(counted=counted)
        assert code == 0, f"{self.stage.name} ended with {code}"
        return counted.value

    def _start(self, die_at: int = 0, seconds: float | None = None, counted: object = None) -> int | None:
        arguments = (self.config, self.paths, self.stage.name, self.paradigm, die_at, counted)
        process = _server.Process(target=_work, args=arguments)
        process.start()
        process.join(300 if seconds is None else seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode


def train(config: Config, paths: Paths, paradigm: str, die_at: int, half_written: bool = False) -> int | None:
    """Train in a process that is killed after this step, or while that step's checkpoint is written; its code."""
    process = _server.Process(target=_train, args=(config, paths, paradigm, die_at, half_written))
    process.start()
    process.join(300)
    return process.exitcode


def _train(config: Config, paths: Paths, paradigm: str, die_at: int, half_written: bool) -> None:
    _to_log(paths)

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def listen(event: Event) -> None:
        if isinstance(event, Stepped) and event.step == die_at:
            if not half_written:
                die()
            checkpoint.write_json = die  # the tensors of this step's checkpoint are there, what belongs to them is not

    pipeline.execute(pipeline.TRAIN, config, paths, paradigm, [listen])


def _to_log(paths: Paths) -> None:
    """Have what this process prints in a file beside the home."""
    log = (paths.home.parent / "stages.log").open("a")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)


def _work(config: Config, paths: Paths, name: str, paradigm: str | None, die_at: int, counted: object) -> None:
    _to_log(paths)
    calls = _mortal(die_at)
    pipeline.execute(pipeline.BY_NAME[name], config, paths, paradigm)
    if counted is not None:
        counted.value = calls[0]


def _mortal(die_at: int) -> list[int]:
    """Have this process killed at a call; the number of calls so far."""
    calls = [0]

    def hook(event: str, _: object) -> None:
        if event in CALLS:
            calls[0] += 1
            if calls[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return calls


def publish(target: Path, texts: Mapping[str, str], die_at: int = 0) -> int | None:
    """Publish files as a stage's output, with links beside it, in a process that is killed at this call; its code."""
    process = _server.Process(target=_publish, args=(target, texts, die_at))
    process.start()
    process.join(60)
    return process.exitcode


def _publish(target: Path, texts: Mapping[str, str], die_at: int) -> None:
    _mortal(die_at)
    with artifacts.publish(
        target, "x", links={target.parent / name: Path(target.name, name) for name in texts}
    ) as draft:
        for name, text in texts.items():
            artifacts.write_text(draft.path / name, text)
