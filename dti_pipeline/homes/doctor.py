"""What this machine and this home have for the pipeline, and what is missing: ``dti doctor``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from dti_pipeline import config, lineage
from dti_pipeline.address import is_address
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events import remote
from dti_pipeline.homes.complete import left_out
from dti_pipeline.homes.make import program
from dti_pipeline.paths import Paths
from dti_pipeline.plain import parse_yaml

State = Literal["ok", "note", "stop"]
#: What trains, and what the stages before and after it need; without one of them `dti run` ends.
NEEDED = ("torch", "transformers", "peft", "accelerate", "numpy", "numba", "pyarrow", "duckdb", "great_expectations")
#: What is there for one entry point, and how to get it.
OPTIONAL = {
    "mlflow": "no run is recorded; set tracking.enabled: false",
    "dagster": "no `dti ui`, `dg dev`, schedules",
    "fastapi": "no `dti serve`; dti-pipeline[serving] has it",
    "ray": "no `execution.engine: ray`; dti-pipeline[ray] has it",
}
PORTS = {"Dagster": 3000, "MLflow": 5000}
#: Free bytes of the home's disk: below the first little can be written, below the second not much.
LITTLE, ENOUGH = 100e6, 5e9


@dataclass(frozen=True)
class Finding:
    """One line. ``stop``: the pipeline cannot work so."""

    name: str
    state: State
    text: str

    def line(self) -> str:
        return f"{ {'ok': ' ', 'note': '-', 'stop': '!'}[self.state] } {self.name:<12} {self.text}"


def examine(paths: Paths) -> list[Finding]:
    """Everything, the machine first. Starts nothing and writes nothing."""
    settings, refused = _settings(paths)
    return [
        _python(),
        *_libraries(settings),
        *_gpu(settings),
        _threads(),
        _memory(),
        _disk(paths.home),
        *_ports(),
        _pools(paths.home),
        *_programs(paths, [] if settings is None else left_out(paths)),
        refused or Finding("params.yaml", "ok" if paths.params.is_file() else "note", _params(paths)),
        *([] if settings is None else [_log(settings, paths)]),
    ]


def _settings(paths: Paths) -> tuple[Config | None, Finding | None]:
    try:
        return config.load(paths.params), None
    except InputError as error:
        return None, Finding("params.yaml", "stop", str(error))


def _params(paths: Paths) -> str:
    return (
        str(paths.params) if paths.params.is_file() else f"none in {paths.home}: every key has its default; `dti init`"
    )


def _python() -> Finding:
    where = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    fits = sys.version_info >= (3, 11)
    return Finding("Python", "ok" if fits else "stop", where if fits else f"{where}: 3.11 or newer is needed")


def _libraries(settings: Config | None) -> Iterator[Finding]:
    there = {name: found for name in NEEDED if (found := _version(name))}
    lacking = [name for name in NEEDED if name not in there]
    own = f"dti-pipeline {lineage.versions()['dti-pipeline']}, "
    yield Finding("libraries", "ok", own + ", ".join(f"{name} {found}" for name, found in there.items()))
    if lacking:
        yield Finding("libraries", "stop", f"not installed: {', '.join(lacking)}; dti-pipeline[pipeline] has them")
    for name, without in OPTIONAL.items():
        found = _version(name)
        needed = name == "mlflow" and settings is not None and settings.tracking.enabled
        yield Finding(name, "ok" if found else "stop" if needed else "note", found or f"not installed: {without}")


def _version(name: str) -> str | None:
    """The version of a package that can be imported; nothing is imported."""
    if importlib.util.find_spec(name) is None:
        return None
    try:
        return version(name.replace("_", "-"))
    except PackageNotFoundError:
        return "of unknown version"


def _gpu(settings: Config | None) -> Iterator[Finding]:
    asked = settings is not None and settings.training.device == "cuda"
    if _version("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        usable = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        yield Finding("GPU", "ok", f"{', '.join(usable)}; CUDA {torch.version.cuda}")
    elif names := lineage.gpu_names():
        text = f"{', '.join(names)}, which torch {torch.__version__} cannot use: install its build for CUDA"
        yield Finding("GPU", "stop" if asked else "note", text)
    else:
        text = "none: trainings run on the CPU" if not asked else "none, and params.yaml has training.device: cuda"
        yield Finding("GPU", "stop" if asked else "note", text)


def _threads() -> Finding:
    cores = lineage.cores()
    load = os.getloadavg()[0]
    own = ", ".join(
        f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ
    )
    busy = load > 0.5 * cores
    text = f"{cores} cores, load {load:.1f}" + (": seconds of a training mean little now" if busy else "")
    return Finding("threads", "note" if busy else "ok", f"{text}; {own}")


def _memory() -> Finding:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return Finding("memory", "note", "not known on this system")
    return Finding("memory", "ok" if free > 2e9 else "note", f"{free / 1e9:.1f} GB free")


def _disk(home: Path) -> Finding:
    place = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(place, os.W_OK):
        return Finding("disk", "stop", f"{place} cannot be written to")
    free = shutil.disk_usage(place).free
    state: State = "stop" if free < LITTLE else "note" if free < ENOUGH else "ok"
    return Finding("disk", state, f"{free / 1e9:.1f} GB free at {place}")


def _ports() -> Iterator[Finding]:
    for name, port in PORTS.items():
        with socket.socket() as probe:
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        text = "somebody listens there: `dti ui` takes the next free one" if taken else "free"
        yield Finding(f"port {port}", "note" if taken else "ok", f"{text} ({name})")


def _pools(home: Path) -> Finding:
    folder = Path(os.environ.get("DAGSTER_HOME") or home)
    file = folder / "dagster.yaml"
    if not file.is_file():
        return Finding("pools", "note", f"{folder} has no dagster.yaml: trainings in Dagster would run side by side")
    try:
        limit = parse_yaml(config.read_text(file), str(file))["concurrency"]["pools"]["default_limit"]
    except (InputError, KeyError, TypeError):
        return Finding("pools", "note", f"{file} names no concurrency.pools.default_limit")
    return Finding(
        "pools", "ok" if limit == 1 else "note", f"{limit} run at a time in each of gpu, duckdb, dvc ({file})"
    )


def _programs(paths: Paths, lacks: list[str]) -> Iterator[Finding]:
    git, dvc, home = shutil.which("git"), program("dvc"), paths.home
    yield Finding("git", "ok" if git else "note", git or "not here: results do not name a commit")
    if dvc is None:
        yield Finding("DVC", "note", "not here: no `dvc repro`; it wants an environment of its own")
    elif not (home / ".dvc").is_dir():
        yield Finding("DVC", "note", f"{dvc}; not begun in {home}: `dti init`")
    else:
        yield Finding("DVC", "ok", dvc)
    if lacks:
        text = f"refuses a params.yaml without {', '.join(lacks)}: `dti config --complete` adds their defaults"
        yield Finding("DVC", "note", text)


def _log(settings: Config, paths: Paths) -> Finding:
    path = paths.resolve(settings.events.path)
    if settings.events.source == "synthetic":
        return Finding("log", "ok", "synthetic: `dti synth` makes it")
    if is_address(settings.events.path):
        try:
            objects = remote.listed(settings.events).values()
        except InputError as error:
            return Finding("log", "stop", str(error))
        size = sum(one.size for one in objects)
        return Finding("log", "ok", f"{settings.events.path}: {len(objects)} objects, {size / 1e9:.1f} GB")
    return Finding("log", "ok" if path.exists() else "stop", str(path) + ("" if path.exists() else " does not exist"))
