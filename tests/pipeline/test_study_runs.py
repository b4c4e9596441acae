"""The runs of `dti study`: stopped, killed, failed, gone on with, prepared elsewhere, rehearsed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dti_pipeline import config
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from experiments import command, schedule
from experiments import grid as grids
from experiments.logs import prepare
from experiments.run import execute, folder
from tests.pipeline.studies import STUDY, rows_of, study
from tests.project import TINY


@pytest.mark.slow
def test_told_to_stop_it_saves_leaves_no_process_and_goes_on_to_the_same_figures(logs: Path, tmp_path: Path) -> None:
    grid = study(tmp_path, epochs=1.0, targets_per_step=32, checkpoint_seconds=0)  # steps enough to be stopped among
    run = next(run for run in grid.runs if run.paradigm == "dti")
    work, alone = (shutil.copytree(logs, tmp_path / name, symlinks=True) for name in ("study", "alone"))
    expected = execute(run, alone)
    content = yaml.safe_load((tmp_path / "study.yaml").read_text())
    content["groups"][0]["paradigms"] = ["dti"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))

    words = [sys.executable, "-m", "dti_pipeline.cli", "study", str(tmp_path / "study.yaml"), "--no-report"]
    words += ["--workers", "2"]
    command = subprocess.Popen(words, env=os.environ | {"DTI_HOME": str(tmp_path)}, stderr=subprocess.DEVNULL)
    checkpoints = folder(work, run) / "home" / "models" / ".checkpoints"
    until = time.monotonic() + 300
    while not list(checkpoints.glob("*/*/step-*")) and time.monotonic() < until:
        time.sleep(0.01)
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 130
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"{work} {run.digest}" not in running
    assert list(checkpoints.glob("*/*/step-*"))
    assert not rows_of(tmp_path)

    said: list[str] = []
    assert schedule.execute(grid, work, [run], budget=1e-9, say=said.append) == 0
    assert said == ["1 runs are left: the same command goes on with them"]
    assert schedule.execute(grid, work, [run], say=said.append) == 0
    (row,) = rows_of(tmp_path)
    figures = ("auc", "auc_streaming", "log_loss", "loss", "targets", "steps")
    assert {key: row[key] for key in figures} == {key: expected[key] for key in figures}
    assert (expected["workers"], row["workers"]) == (1, 2)  # a part of it did not have the machine to itself


def test_the_row_of_a_run_that_was_killed_says_by_what(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, work = study(tmp_path), shutil.copytree(logs, tmp_path / "study", symlinks=True)
    begin = subprocess.Popen
    words = ["sh", "-c", "echo step 7; kill -KILL $$"]
    monkeypatch.setattr(schedule.subprocess, "Popen", lambda given, **options: begin(words, **options))
    assert schedule.execute(grid, work, grid.runs[:1], say=lambda text: None) == 1
    (row,) = rows_of(tmp_path)
    assert row["error"] == "killed by SIGKILL: step 7"


@pytest.mark.slow
def test_a_run_that_fails_has_a_row_with_its_error_and_is_tried_again(logs: Path, tmp_path: Path) -> None:
    grid, work = study(tmp_path), shutil.copytree(logs, tmp_path / "study", symlinks=True)
    run = next(run for run in grid.runs if run.paradigm == "dti")
    (work / "demo" / "packed").write_text("in the way")
    said: list[str] = []
    assert schedule.execute(grid, work, [run], say=said.append) == 1
    (row,) = rows_of(tmp_path)
    assert row["error"] in said[0]
    assert "packed" in row["error"]
    assert row["paradigm"] == "dti"
    assert next(schedule.listing(grid, work, [run]))["state"] == "failed"
    (work / "demo" / "packed").unlink()
    assert schedule.execute(grid, work, [run], say=said.append) == 0
    (row,) = rows_of(tmp_path)
    assert "error" not in row
    assert row["auc"] > 0


def test_a_prepared_log_needs_no_duckdb(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = study(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "duckdb" else find(name))
    prepare(grid, "demo", logs, {}, Paths(tmp_path))
    grid.data_sets["demo"].params["split"] = {"min_history": 6}
    with pytest.raises(InputError, match="duckdb is not installed here: run `dti study --prepare` where it is"):
        prepare(grid, "demo", logs, {}, Paths(tmp_path))


@pytest.mark.slow
def test_trials_on_a_rehearsal_are_prepared_trained_and_never_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(json.dumps(STUDY)) | {"figures": {}, "document": None}
    content["models"] = {"dry": {"model": {"dropout": 0.3}}}
    content["data_sets"]["demo"]["params"]["split"] = {"rule": "user_order"}
    recipe = {section: TINY[section] for section in ("packing", "model", "training")}
    content["data_sets"]["past"] = {"rehearsal": {"of": "demo", "train": 0.6}, "params": recipe}
    content["groups"] = [
        {"name": "trials", "data_sets": ["past"], "paradigms": ["dti"], "models": ["dry"], "measure": "validation"}
    ]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    task = command.Task(tmp_path / "study.yaml", tmp_path / "study", workers=2)
    untracked = config.load(Path("none"), ["tracking.enabled=false"])
    report = command.make(task, untracked, Paths(tmp_path), None, lambda text: None)
    assert (report["rows"], report["errors"], report["missing"]) == (1, 0, 0), rows_of(tmp_path)
    (row,) = rows_of(tmp_path)
    assert row["learning"][-1][1] == pytest.approx(row["validation_auc"], abs=1e-6)
    assert row["floors"]
    assert not [key for key in row if key.startswith(("auc", "test")) and row[key] is not None]
    assert not list(tmp_path.glob("study/past/runs/*/predictions.parquet"))

    # Brought along, a rehearsal needs neither duckdb nor the log that it was made of.
    shutil.rmtree(tmp_path / "study" / "demo")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    prepare(grids.load(task.grid), "past", task.work, {}, Paths(tmp_path))
