"""Lineage of a result: the code's commit, the machine, the versions of libraries. Imports none of them."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
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

    None where nothing is named and there is no repository or no git. Only the package decides what is dirty: every
    stage that DVC or Dagster runs rewrites dvc.lock, and parameters are recorded with the result.
    """
    if named := os.environ.get("DTI_COMMIT"):
        return Commit(named, dirty=False)
    sha = _output("git", "-C", str(SOURCE), "rev-parse", "HEAD")
    if sha is None or _output("git", "-C", str(SOURCE), "ls-files", "--error-unmatch", "paths.py") is None:
        return None  # site-packages inside somebody else's repository is not that repository's code
    changed = _output("git", "-C", str(SOURCE), "status", "--porcelain", "--untracked-files=no", "--", ".")
    return Commit(sha, bool(changed))


def commit_name() -> str | None:
    """The commit as results name it; None where there is none."""
    found = commit()
    return None if found is None else str(found)


def hardware(gpus: Sequence[str] | None = None) -> str:
    """The hardware of a duration: the GPUs, else the CPU and its usable cores.

    ``gpus``: names of those in use, each as often as it is; empty: the CPU; None: all GPUs of the machine.
    """
    names = gpu_names() if gpus is None else gpus
    if names:
        return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
    cpu = f"{platform.machine()} CPU"
    with suppress(OSError):
        models = re.findall(r"^model name\s*: (.+)", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
        cpu = next((model for model in models if "unknown" not in model), cpu)
    return f"{cpu}, {cores()} cores"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """This package, Python and the libraries that figures may depend on, by name; one that is not there is left out."""
    found = {"dti-pipeline": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def gpu_names() -> tuple[str, ...]:
    """Names of this machine's GPUs, as the driver tells them."""
    return tuple((_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "").splitlines())


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
