"""Where a result comes from: what counts as changed code, and what it was measured on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dti_pipeline import lineage


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with the package's folder and a lock file beside it, both committed."""
    package = tmp_path / "dti_pipeline"
    package.mkdir()
    (package / "paths.py").write_text("")
    (tmp_path / "dvc.lock").write_text("")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "t"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(lineage, "SOURCE", package)
    lineage.commit.cache_clear()
    yield tmp_path
    lineage.commit.cache_clear()


def test_what_the_stages_write_does_not_make_the_code_dirty(repository: Path) -> None:
    (repository / "dvc.lock").write_text("stages: {}")
    found = lineage.commit()
    assert found is not None
    assert str(found) == found.sha
    assert len(found.sha) == 40


def test_a_changed_source_file_does(repository: Path) -> None:
    (repository / "dti_pipeline" / "paths.py").write_text("changed = True")
    found = lineage.commit()
    assert found is not None
    assert str(found) == f"{found.sha}-dirty"


def test_an_installation_inside_somebody_elses_repository_has_no_commit(repository: Path) -> None:
    subprocess.run(["git", "rm", "-q", "--cached", "dti_pipeline/paths.py"], cwd=repository, check=True)
    assert lineage.commit() is None


def test_hardware_is_what_was_used() -> None:
    assert lineage.hardware(["NVIDIA H200"]) == "NVIDIA H200"
    assert lineage.hardware(["NVIDIA H200"] * 8) == "8 x NVIDIA H200"
    assert lineage.hardware([]).endswith(" cores")


def test_code_without_its_repository_says_what_its_image_says(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lineage, "SOURCE", tmp_path.parent)
    assert lineage.commit() is None
    lineage.commit.cache_clear()
    monkeypatch.setenv("DTI_COMMIT", "c0ffee")
    assert str(lineage.commit()) == "c0ffee"


def test_a_commit_that_is_named_is_believed_wherever_the_code_lies(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DTI_COMMIT", "c0ffee")
    assert str(lineage.commit()) == "c0ffee"
