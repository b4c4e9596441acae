"""A small project in a folder of its own, for tests that run the real stages through the real entry points."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from dti_pipeline import config
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain

ROOT = Path(__file__).resolve().parent.parent
DVC = Path(sys.executable).parent / "dvc"
TINY: dict[str, dict[str, Any]] = {
    "synth": {"users": 60, "items": 80, "interactions_per_user": 30},
    "packing": {"context": 5, "targets": 10, "row_length": 256},
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 32},
    "training": {"epochs": 0.2, "evaluations": 1},
    "evaluation": {"bootstrap_samples": 50},
}


class Project:
    """A clone's own files without its code, under git, with the demo's recipe made small as params.yaml."""

    def __init__(self, home: Path) -> None:
        self.paths = Paths(home)
        self.home = home
        for name in ("pyproject.toml", "dagster.yaml", "dvc.yaml", ".gitignore", ".dvcignore"):
            shutil.copy(ROOT / name, home)
        shutil.copytree(ROOT / ".dvc", home / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
        self.params = to_plain(config.load(ROOT / "recipes/demo.yaml"))
        self.set({})
        self.run("git", "init", "--quiet")
        self.commit("start")

    @classmethod
    def at(cls, home: Path) -> Project:
        """The project that a folder holds."""
        project = object.__new__(cls)
        project.home, project.paths = home, Paths(home)
        project.params = yaml.safe_load(project.paths.params.read_text())
        return project

    def copy(self, home: Path) -> Project:
        """The same project in another folder, to change; without the locks of a DVC that is at work in this one."""
        shutil.copytree(self.home, home, symlinks=True, ignore=shutil.ignore_patterns("tmp"))
        return Project.at(home)

    def commit(self, message: str) -> None:
        """Everything that git does not ignore, as a commit."""
        self.run("git", "add", ".")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", message)

    def set(self, changes: dict[str, dict[str, Any]]) -> None:
        """Write params.yaml with changes on top of the tiny ones."""
        for source in (TINY, changes):
            for section, values in source.items():
                self.params[section] |= values
        self.paths.params.write_text(yaml.safe_dump(self.params, sort_keys=False))

    def run(self, *command: str | Path, **variables: str) -> str:
        """Standard output and error of a command at the project's root; it must succeed."""
        environment = {key: value for key, value in os.environ.items() if key not in ("DTI_HOME", "DAGSTER_HOME")}
        environment |= {"DAGSTER_HOME": str(self.home), "CUDA_VISIBLE_DEVICES": ""} | variables
        done = subprocess.run(
            list(map(str, command)), cwd=self.home, env=environment, capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        return output

    def lock(self) -> dict[str, dict[str, str]]:
        """Outputs of each stage in dvc.lock, by path, with their digests."""
        stages = yaml.safe_load((self.home / "dvc.lock").read_text())["stages"]
        return {name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in stages.items()}
