"""A training says where the time to its first step went: as an event, and in its report."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.modeling.speed.compiler_cache import TORCH, TRITON
from dti_pipeline.paths import Paths
from dti_pipeline.training.progress import Event, FirstStep, Stepped
from dti_pipeline.training.report import TrainReport
from dti_pipeline.training.train import train
from tests.model.test_fallback import PARADIGM, home_of


def test_the_first_step_is_told_once_with_all_that_went_before(
    token_home: tuple[Config, Paths], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (TORCH, TRITON):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    config, paths = home_of(token_home, tmp_path / "home")
    events: list[Event] = []
    train(config, paths, PARADIGM, [events.append])
    told = [event for event in events if isinstance(event, FirstStep)]
    assert len(told) == 1
    assert events.index(told[0]) < min(i for i, event in enumerate(events) if isinstance(event, Stepped))
    assert list(told[0].parts)[-7:] == [
        "imports", "data", "weights", "placement", "tracking", "compilation", "first step",
    ]  # fmt: skip
    assert told[0].seconds == pytest.approx(sum(told[0].parts.values()))
    kept = artifacts.read(paths.model(PARADIGM), "train", TrainReport).report.first_step
    assert kept == pytest.approx(told[0].parts, abs=1e-3)
    assert {os.environ[variable] for variable in (TORCH, TRITON)} == {
        str(paths.compiled / below) for below in ("torch", "triton")
    }
