"""What a repository owes to strangers: workflows with least rights, one version everywhere, notes of its release."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from dti_pipeline import __version__

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_nothing_else_and_its_actions_are_pinned(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert "permissions" not in job
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert set(re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))) <= TARGETS
    assert all(" # v" in line for line in path.read_text().splitlines() if "uses:" in line), (
        "the version beside the pin"
    )


def test_workflows_are_what_their_schema_allows() -> None:
    program = Path(sys.executable).parent / "check-jsonschema"
    command = [program, "--builtin-schema", "vendor.github-workflows", *WORKFLOWS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_has_one_version_with_notes() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    notes = re.search(
        rf"^## \[{re.escape(__version__)}\] - (\d{{4}}-\d\d-\d\d)\n\n(\S.*?)\n\n###",
        (ROOT / "CHANGELOG.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert notes is not None
    assert str(citation["date-released"]) == notes[1]
    assert len(notes[2].split()) > 40


def test_no_file_names_an_index_of_packages() -> None:
    host = "pypi" + ".org"
    listed = subprocess.run(["git", "grep", "-lI", host], cwd=ROOT, capture_output=True, text=True, check=False)
    assert listed.stdout == ""
