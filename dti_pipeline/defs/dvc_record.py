"""Commits to DVC the outputs of a stage that ran in Dagster: ``dvc repro`` then has nothing to do."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

from dti_pipeline import dvc, locks
from dti_pipeline.defs.resources import Work
from dti_pipeline.errors import masked
from dti_pipeline.homes.complete import left_out
from dti_pipeline.pipeline import Stage


def record(stage: Stage[Any], work: Work, paradigm: str | None, log: logging.Logger) -> None:
    """``dvc commit`` the stage, or log why not. A commit that fails is a warning, with DVC's reason and the command to
    type."""
    name, home = dvc.stage_name(stage, paradigm), work.paths.home
    program = shutil.which("dvc", path=str(Path(sys.executable).parent)) or shutil.which("dvc")
    if reason := _not_recorded(stage, work, paradigm, program):
        log.info(f"DVC does not record {name}: {reason}")
        return
    with locks.alone(home / ".dvc" / "tmp" / "commit"):  # DVC itself waits only seconds for another one
        command = [str(program), "commit", "--force", name]  # with --quiet it would not say why it fails
        done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    if done.returncode:
        lacks = left_out(work.paths)
        first = f" after `dti config --complete`, which adds the defaults of {', '.join(lacks)}" if lacks else ""
        reason = masked(done.stderr.strip()[-2000:])
        log.warning(f"`dvc commit --force {name}` failed, run it by hand{first}: {reason}")


def _not_recorded(stage: Stage[Any], work: Work, paradigm: str | None, program: str | None) -> str | None:
    home = work.paths.home
    if not (home / ".dvc").is_dir() or not (home / dvc.FILE).is_file():
        return f"{home} is no DVC project"
    if not stage.needed(work.config):
        return f"the log is read where it lies, {work.config.events.path}"
    if program is None:
        return "there is no `dvc` beside this Python or on PATH"
    if work.overrides:
        return f"params.yaml does not describe a run with {masked(', '.join(work.overrides))}"
    if paradigm is not None and paradigm not in attrgetter(stage.listed)(work.config):
        return f"`{stage.listed}` in params.yaml does not list {paradigm}"
    return None
