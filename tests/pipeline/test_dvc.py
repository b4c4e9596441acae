"""DVC: what a parameter makes stale, what a remote gives back, what an old commit restores."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from dti_pipeline import artifacts
from tests import objects
from tests.objects import KEYS, Store
from tests.project import DVC, Project

pytestmark = pytest.mark.slow

#: Which stages a change of one parameter makes stale by itself; those after them follow if their inputs change.
TOUCHES: dict[tuple[str, Any], set[str]] = {
    ("synth.seed", 8): {"synth"},
    ("events.max_users", 50): {"ingest", "validate"},
    ("split.label_threshold", 3.5): {"ingest", "validate", "tokenize"},
    ("split.min_history", 6): {"ingest", "validate", "tokenize", "pack@sliding_window", "pack@dti"},
    ("validation.max_shown_rows", 7): {"validate"},
    ("validation.required", False): {"validate", "tokenize"},
    ("tokens.max_text_tokens", 31): {"tokenize"},
    ("tokens.user_template", "{age}"): {"ingest", "validate", "tokenize"},
    ("packing.seed", 8): {"pack@sliding_window", "pack@dti"},
    ("model.dropout", 0.1): {"train@sliding_window", "train@dti"},
    ("training.learning_rate", 0.01): {"train@sliding_window", "train@dti"},
    ("evaluation.calibration_bins", 5): {"evaluate@sliding_window", "evaluate@dti", "compare"},
    ("comparison.margin", 0.02): {"compare"},
    ("tracking.experiment", "other"): set(),
}


@pytest.fixture
def project(demonstrated: tuple[Project, str], tmp_path: Path) -> Project:
    """A project that Dagster ran, to change."""
    copy = demonstrated[0].copy(tmp_path / "project")
    copy.commit("demo")
    return copy


#: `dvc status --json` for each file of parameters that is named, in one process: most of a status is loading DVC.
STATUS = """
import shutil, sys
from dvc.cli import main
for params in sys.argv[1:]:
    shutil.copy(params, "params.yaml")
    assert main(["status", "--json"]) == 0
"""


@pytest.fixture(scope="module")
def stale(demonstrated: tuple[Project, str], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Any], Any]:
    """What DVC says of a project that Dagster ran, for each change of a parameter."""
    folder = tmp_path_factory.mktemp("watched")
    project, files = demonstrated[0].copy(folder / "project"), []
    for number, (parameter, value) in enumerate(TOUCHES):
        section, key = parameter.split(".")
        params = yaml.safe_load(yaml.safe_dump(project.params))
        assert params[section][key] != value
        params[section][key] = value
        files.append(folder / f"{number}.yaml")
        files[-1].write_text(yaml.safe_dump(params))
    python = DVC.parents[2] / ".venv-dvc" / "bin" / "python"
    said = project.run(python, "-c", STATUS, *files)
    return dict(zip(TOUCHES, map(json.loads, said.splitlines()), strict=True))


@pytest.fixture(scope="module")
def bucket() -> Iterator[Store]:
    with objects.store() as found:
        yield found


@pytest.mark.parametrize(("parameter", "value"), TOUCHES)
def test_a_parameter_makes_stale_the_stages_that_read_it(
    stale: dict[tuple[str, Any], Any], parameter: str, value: object
) -> None:
    assert set(stale[parameter, value]) == TOUCHES[parameter, value]


def test_a_key_left_out_is_as_its_default_for_dvc_too_once_it_is_written(project: Project) -> None:
    project.paths.params.write_text("# mine\nparadigms: [dti]\nevents: {}\nsplit: {rule: global_time}\n")
    commit = (DVC, "commit", "--force", "ingest")
    with pytest.raises(AssertionError, match=r"Could not find 'events\.path'"):
        project.run(*commit)
    project.run(DVC.with_name("dti"), "config", "--complete")
    assert project.paths.params.read_text().startswith("# mine\nparadigms: [dti]\nevents: {path: data/raw/synthetic}\n")
    project.run(*commit)


def test_a_threshold_of_validation_leaves_the_models_valid(project: Project) -> None:
    project.set({"validation": {"min_rows": 900}})
    assert running(project.run(DVC, "repro", "train@dti")) == ["validate", "tokenize"]


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_clone_pulls_what_was_pushed_and_has_nothing_to_do(
    project: Project, bucket: Store, tmp_path: Path, kind: str
) -> None:
    if kind == "folder":
        project.run(DVC, "remote", "add", "--default", "storage", tmp_path / "remote")
    else:
        project.run(DVC, "remote", "add", "--default", "storage", "s3://dti/dvc")
        project.run(DVC, "remote", "modify", "storage", "endpointurl", bucket.url)
    project.run(DVC, "push", **KEYS)
    project.commit("remote")
    subprocess.run(["git", "clone", "--quiet", project.home, tmp_path / "clone"], check=True)
    clone = Project.at(tmp_path / "clone")
    clone.run(DVC, "pull", **KEYS)
    assert running(clone.run(DVC, "repro")) == []
    for folder in (Path("models/sliding_window"), Path("models/dti"), Path("reports/comparison")):
        assert artifacts.folder_digest(clone.home / folder) == artifacts.folder_digest(project.home / folder)


def test_a_log_in_a_store_is_watched(bucket: Store, tmp_path: Path) -> None:
    """Two objects under a name that addresses escape."""
    rows = "".join(f"u{user},i{item},{item % 5 + 1},{item}\n" for user in range(9) for item in range(20))

    def put(name: str) -> None:
        bucket.put(f"my log/é%20/{name}", f"user_id,item_id,rating,timestamp\n{rows}".encode())

    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    project.set({"events": {"source": "table", "path": "s3://dti/my log/é%20"}})
    keys = bucket.environment
    put("a.csv")
    assert running(project.run(DVC, "repro", "ingest", **keys)) == ["ingest"]
    put("b.csv")
    changed = json.loads(project.run(DVC, "status", "--json", "ingest", **keys))
    assert changed["ingest"][0]["changed deps"] == {"s3://dti/my log/é%20": "modified"}


def test_an_experiment_shows_what_another_parameter_changed_and_an_old_commit_gives_back_its_model(
    project: Project,
) -> None:
    """`exp run -S` with a list and a number, both forms of comparing it with the commit, and the way back."""
    model = project.paths.model("dti")
    old = artifacts.folder_digest(model)
    ran = project.run(DVC, "exp", "run", "-S", "training.epochs=0.4", "-S", "paradigms=[dti]")
    assert running(ran) == ["train@dti", "evaluate@dti", "compare"]
    epochs = json.loads(project.run(DVC, "params", "diff", "--json"))["params.yaml"]["training.epochs"]
    assert (epochs["old"], epochs["new"]) == (0.2, 0.4)
    auc = json.loads(project.run(DVC, "metrics", "diff", "--json"))["reports/comparison/metrics/dti.json"]["auc"]
    now = json.loads(project.paths.comparison_file("json").read_text())["paradigms"]["dti"]["auc"]
    assert auc["old"] != auc["new"] == now
    project.run(DVC, "plots", "diff", "HEAD", "workspace")
    page = (project.home / "dvc_plots" / "index.html").read_text()
    for drawn in ("HEAD", "workspace", "sliding_window", "dti"):
        assert re.search(rf'"(rev|paradigm)": ?"{drawn}"', page), f"{drawn} is not in the plots"

    store = MlflowClient(project.paths.tracking_uri)
    experiment = store.get_experiment_by_name("dti").experiment_id
    (run, *_) = store.search_runs([experiment], "tags.paradigm != ''", order_by=["attributes.start_time DESC"])
    assert run.data.params["training.epochs"] == "0.4"
    new = artifacts.folder_digest(model)
    assert new != old
    project.commit("twice the epochs")
    for commit, digest in (("HEAD~1", old), ("-", new)):
        project.run("git", "checkout", "--quiet", commit)
        project.run(DVC, "checkout", "train@dti")
        assert artifacts.folder_digest(model) == digest
        assert "train@dti" not in json.loads(project.run(DVC, "status", "--json", "train@dti"))


def running(printed: str) -> list[str]:
    """The stages that `dvc repro` ran, in order."""
    return [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]
