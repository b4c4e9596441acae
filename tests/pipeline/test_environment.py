"""What a person types first: the pinned files, the Makefile, the wrapper that makes `dvc repro` find `dti`."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    """Package to version of a pinned file, names in one spelling."""
    found = {}
    for line in (ROOT / "requirements" / name).read_text().splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement:
            package, separator, version = requirement.partition("==")
            assert separator, f"{name}: {line!r} is not pinned"
            found[spelling(package)] = version
    return found


def spelling(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_every_dependency_is_pinned_at_a_version_it_accepts() -> None:
    extras = dict(PROJECT["optional-dependencies"])
    for name in ("ray", "dagster-ray"):
        del extras[name]  # the version is that of the cluster
    pinned = pins("project.txt")
    for text in (*PROJECT["dependencies"], *itertools.chain(*extras.values())):
        requirement = Requirement(text)
        version = pinned[spelling(requirement.name)]
        assert requirement.specifier.contains(Version(version)), f"{text} is pinned at {version}"


def test_no_pin_names_one_machines_build() -> None:
    for name in ("project.txt", "dvc.txt", "release.txt"):
        assert not [f"{package}=={version}" for package, version in pins(name).items() if "+" in version]


def test_dagster_and_dvc_do_not_share_an_environment() -> None:
    project, dvc = pins("project.txt"), pins("dvc.txt")
    assert "dvc" not in project
    assert "dagster" not in dvc
    assert project["antlr4-python3-runtime"] != dvc["antlr4-python3-runtime"]


def test_releases_that_must_match_do() -> None:
    pinned = pins("project.txt")
    assert len({pinned[name] for name in ("dagster", "dagster-webserver", "dagster-dg-cli", "dagster-pipes")}) == 1
    assert len({pinned[name] for name in ("mlflow", "mlflow-skinny", "mlflow-tracing")}) == 1


def test_make_alone_explains_every_target() -> None:
    listed = make()
    assert listed.returncode == 0
    targets = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    for target in targets:
        assert re.search(rf"^  make {target} +\S", listed.stdout, re.MULTILINE), target


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A clone's Makefile with environments that are current, and no program in them."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def test_setup_does_nothing_when_it_is_current(bare: Path) -> None:
    for stamp in (".venv/.pinned", ".venv/.installed", ".venv-dvc/.pinned", ".venv/bin/dvc"):
        (bare / stamp).parent.mkdir(parents=True, exist_ok=True)
        (bare / stamp).touch()
    assert make("--question", "setup", cwd=bare).returncode == 0
    os.utime(bare / "requirements" / "project.txt", (2**31, 2**31))
    assert make("--question", "setup", cwd=bare).returncode == 1


def test_setup_without_a_python_says_what_it_needs(bare: Path) -> None:
    done = make("setup", "PYTHON=", cwd=bare)
    assert done.returncode != 0
    assert "Python 3.11 or newer" in done.stdout
    assert not (bare / ".venv").exists()


def test_dvc_wrapper_leads_the_stages_to_this_environments_dti(tmp_path: Path) -> None:
    wrapper, real = tmp_path / ".venv" / "bin" / "dvc", tmp_path / ".venv-dvc" / "bin" / "dvc"
    for program, text in (
        (wrapper, (ROOT / "requirements" / "dvc-wrapper.sh").read_text()),
        (real, "#!/bin/sh\necho $PATH $@\n"),
    ):
        program.parent.mkdir(parents=True)
        program.write_text(text)
        program.chmod(0o755)
    done = subprocess.run([wrapper, "repro", "a b"], capture_output=True, text=True, check=True, cwd="/")
    path, *arguments = done.stdout.split()
    assert path.split(":")[0] == str(wrapper.parent)
    assert arguments == ["repro", "a", "b"]


def test_continuous_integration_runs_the_readmes_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert commands[:2] == ["set -eu", 'cd "$(dirname "$0")/.."']
    assert commands[-1] == "exec make test"
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0


def test_pre_commit_uses_the_projects_own_tools() -> None:
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repo,) = content["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")


def test_nothing_reports_usage() -> None:
    assert yaml.safe_load((ROOT / "dagster.yaml").read_text())["telemetry"] == {"enabled": False}
    assert re.search(r"^\s*analytics = false$", (ROOT / ".dvc" / "config").read_text(), re.MULTILINE)
    assert re.search(r"^\s*check_update = false$", (ROOT / ".dvc" / "config").read_text(), re.MULTILINE)
