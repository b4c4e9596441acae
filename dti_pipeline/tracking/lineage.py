"""Where a result comes from: the code's commit and the machine. Light; imports no library."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Commit:
    """The state of the code that ran."""

    sha: str
    dirty: bool  # tracked files differ from the commit

    def __str__(self) -> str:
        return f"{self.sha}-dirty" if self.dirty else self.sha


@cache
def commit() -> Commit | None:
    """The commit of the package's own source; None where it is installed without its repository, or without git."""
    sha = _output("git", "-C", str(SOURCE), "rev-parse", "HEAD")
    if sha is None or _output("git", "-C", str(SOURCE), "ls-files", "--error-unmatch", "paths.py") is None:
        return None  # a site-packages folder inside somebody else's repository is not that repository's code
    return Commit(sha, bool(_output("git", "-C", str(SOURCE), "status", "--porcelain", "--untracked-files=no")))


@cache
def hardware() -> str:
    """What a duration was measured on: the GPUs where there are some, else the CPU and its usable cores."""
    gpus = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if gpus:
        names = gpus.splitlines()
        return names[0] if len(names) == 1 else f"{len(names)} x {names[0]}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu()}, {cores} cores"


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
