"""Lineage of a result: the code's commit, the machine, the libraries. Light; imports none of them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dti_pipeline import __version__

SOURCE = Path(__file__).resolve().parent
#: Libraries that figures may depend on, beside the code.
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy", "pyarrow")


@dataclass(frozen=True)
class Commit:
    """The state of the code that ran."""

    sha: str
    dirty: bool  # the package's own files differ from the commit

    def __str__(self) -> str:
        return f"{self.sha}-dirty" if self.dirty else self.sha


@cache
def commit() -> Commit | None:
    """The commit that ``DTI_COMMIT`` names, as images do; else the one of the package's own source.

    None where it is installed without its repository, or without git, and nothing is named. Only the package decides
    what is dirty: every stage that DVC or Dagster runs rewrites dvc.lock, and a changed params.yaml is recorded with
    the result anyway.
    """
    if named := os.environ.get("DTI_COMMIT"):  # who copied the code here knows better than what lies around it
        return Commit(named, dirty=False)
    sha = _output("git", "-C", str(SOURCE), "rev-parse", "HEAD")
    if sha is None or _output("git", "-C", str(SOURCE), "ls-files", "--error-unmatch", "paths.py") is None:
        # A site-packages folder inside somebody else's repository is not that repository's code.
        return None
    changed = _output("git", "-C", str(SOURCE), "status", "--porcelain", "--untracked-files=no", "--", ".")
    return Commit(sha, bool(changed))


def hardware(gpus: Sequence[str] | None = None) -> str:
    """The hardware of a duration: the GPUs, else the CPU and its usable cores.

    ``gpus``: names of those in use, one for each; none at all: the CPU; None: whatever GPUs the machine has.
    """
    names = _gpus() if gpus is None else gpus
    if names:
        return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu()}, {cores} cores"


def versions() -> dict[str, str]:
    """This package, Python and the libraries that figures may depend on, by name; one that is not there is left out."""
    found = {"dti-pipeline": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def _gpus() -> tuple[str, ...]:
    return tuple((_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines())


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name") and "unknown" not in line:
                return line.partition(":")[2].strip()
    return f"{platform.machine()} CPU"


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
