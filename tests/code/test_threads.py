"""Threads that wait for work sleep, whichever door a process came in by; a user's own setting stands.

A training uses as many as its micro-batches are worth."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dti_pipeline.training.threads import OF_A_THREAD, enough_threads

ROOT = Path(__file__).resolve().parents[2]
#: Modules that a process begins with: of the command line, Dagster's code location, a server, benchmarks, tests.
DOORS = (
    "dti_pipeline.cli",
    "dti_pipeline.definitions",
    "dti_pipeline.serving.scorer",
    "benchmarks.train_step_cpu",
    "tests.conftest",
)


def policies(door: str, **environment: str) -> set[str]:
    """How OpenMP's threads wait after that module and torch are loaded, as each of its copies says when it is."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", f"import {door}, torch"],
        env={**own, **environment, "PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "TRUE"},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(re.findall(r"OMP_WAIT_POLICY ?= ?'(\w+)'", done.stderr))


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_threads_sleep(door: str) -> None:
    assert policies(door) == {"PASSIVE"}


@pytest.mark.slow
def test_a_user_s_own_setting_stands() -> None:
    assert policies("dti_pipeline.cli", OMP_WAIT_POLICY="ACTIVE") == {"ACTIVE"}


@pytest.mark.parametrize(
    ("device", "numbers", "expected"),
    [("cpu", 1024 * 64, 1), ("cpu", 2 * OF_A_THREAD, 2), ("cpu", 10**9, 4), ("cuda", 1024 * 64, 4)],
)
def test_a_training_uses_the_threads_that_it_can(
    device: str, numbers: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: used[-1])
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    with enough_threads(torch.device(device), numbers):
        assert used[-1] == expected
    assert used[-1] == 4
