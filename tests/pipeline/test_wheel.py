"""A wheel in an environment of its own, without the clone: `dti init`, `dti run`, Dagster and `dvc repro` in a home."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from tests.project import DVC, ROOT

pytestmark = pytest.mark.long
TINY = {
    "model": {"hidden_size": 16, "layers": 1},
    "training": {"epochs": 0.2, "evaluations": 0},
    "evaluation": {"bootstrap_samples": 50},
}


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DTI_HOME", "DAGSTER_HOME")
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin of an environment with the wheel, and this one's libraries; its `dvc` is this one's."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if name.startswith(("dti_pipeline", "experiments", "recipes", ".dvc")) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    libraries = next(environment.glob("lib/python*/site-packages"))
    (libraries / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    python = environment / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (environment / "bin" / "dvc").write_text(
        f'#!/bin/sh\nPATH="{environment}/bin:$PATH" exec "{DVC.resolve().parent}/dvc" "$@"\n'
    )
    (environment / "bin" / "dvc").chmod(0o755)
    return environment / "bin"


@pytest.fixture(scope="module")
def home(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for a CSV of one's own, made by the installed program."""
    folder = tmp_path_factory.mktemp("own")
    draw = random.Random(5)
    rows = [
        f"u{user},{draw.randrange(60)},{int(draw.random() < 0.4)},{1_600_000_000 + 4000 * step}"
        for user in range(40)
        for step in range(40)
    ]
    (folder / "log.csv").write_text("\n".join(["user,sku,clicked,at", *rows]))
    (folder / "items.csv").write_text("\n".join(["sku,name", *(f"{sku},thing {sku}" for sku in range(60))]))
    run(installed / "dti", "init", "mine", "--from", "log.csv", cwd=folder, PATH=f"{installed}:{os.environ['PATH']}")
    return folder / "mine"


def test_the_package_is_the_wheels_and_its_recipes_are_there(installed: Path, home: Path) -> None:
    where = run(installed / "python", "-c", "import dti_pipeline; print(dti_pipeline.__file__)", cwd=home)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "row_length: 5120" in run(installed / "dti", "config", "--params", "recipes/small.yaml", cwd=home)
    assert "DVC" in run(installed / "dti", "doctor", cwd=home)


def test_dagster_and_dvc_work_in_the_home_and_know_of_each_other(installed: Path, home: Path) -> None:
    params = yaml.safe_load((home / "params.yaml").read_text())
    for section, values in TINY.items():
        params[section] |= values
    (home / "params.yaml").write_text(yaml.safe_dump(params))
    variables = {"PATH": f"{installed}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    dg = "from dagster_dg_cli.cli import main; main()"
    run(installed / "python", "-c", dg, "check", "defs", cwd=home, **variables)  # finds what `dg dev` has to find
    run(installed / "python", "-c", dg, "launch", "--job", "prepare_log", cwd=home, **variables)
    assert "up to date" in run(installed / "dvc", "status", "tokenize", cwd=home, **variables)
    run(installed / "dvc", "repro", cwd=home, **variables)
    assert (home / "reports" / "comparison.html").is_file()
