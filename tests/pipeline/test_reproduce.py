"""A run made again from its record is equal to the last bit, or what is not is named; a version has its certificate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from dti_pipeline import artifacts, cli, pipeline, tracking
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed, InputError, check
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paths import Paths
from dti_pipeline.reproduction import page, reproduce
from dti_pipeline.reproduction.report import Reproduction
from dti_pipeline.training.report import TrainReport
from tests.small import configured

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> tuple[Config, Paths, str]:
    """A home with a log of its own, trained and evaluated with a record; and the run's id."""
    paths = Paths(tmp_path_factory.mktemp("home"))
    shutil.copy(empty_store, paths.home / "mlflow.db")
    draw, log = np.random.default_rng(3), paths.home / "data/raw/mine/log.csv"
    log.parent.mkdir(parents=True)
    rows = [
        f"{u},{draw.integers(30)},{draw.integers(1, 6)},{10**9 + 1000 * i + u}" for u in range(20) for i in range(16)
    ]
    log.write_text("\n".join(["user_id,item_id,rating,timestamp", *rows]) + "\n")
    (log.parent / "notes.txt").write_text("beside the log")
    config = configured(
        events={"source": "table", "path": "data/raw/mine"}, validation={"required": False},
        evaluation={"bootstrap_samples": 10}, tracking={"enabled": True},
    )  # fmt: skip
    for stage, paradigm in pipeline.plan(config):
        if stage.name not in ("synth", "validate", "compare"):
            pipeline.execute(stage, config, paths, paradigm)
    run_id = artifacts.read(paths.model("dti"), "train", TrainReport).report.mlflow_run_id
    assert run_id is not None
    return config, paths, run_id


@pytest.fixture
def log(made: tuple[Config, Paths, str]) -> Iterator[Path]:
    """The raw log, to be changed for a test."""
    path = made[1].home / "data/raw/mine/log.csv"
    before = path.read_text()
    yield path
    path.write_text(before)


def again(made: tuple[Config, Paths, str], into: Path, seed: int | None = None) -> Reproduction:
    config, paths, run_id = made
    run = tracking.recorded(config, paths, run_id)
    if seed is not None:
        run.record["config"]["training"]["seed"] = seed

    def make(name: str, settings: Config, home: Paths, paradigm: str) -> None:
        stage = pipeline.BY_NAME[name]
        pipeline.execute(stage, settings, home, paradigm if stage.per_paradigm else None)

    return reproduce.reproduce(config, paths, run, into, make)


def test_a_run_is_made_again_to_the_last_bit_by_the_command(
    made: tuple[Config, Paths, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, paths, run_id = made
    monkeypatch.setenv("DTI_HOME", str(paths.home))
    into = tmp_path / "again"
    arguments = ["reproduce", run_id, "--into", str(into), "--json"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    counted = [one for one in found["compared"] if one["part"] != "made with"]
    assert {one["part"] for one in counted} == {"data", "weights", "training", "metrics"}
    assert all(one["equal"] and not one["difference"] for one in counted)
    assert found["made_from"] == f"the raw log, {paths.home / 'data/raw/mine'}"
    assert artifacts.read(Paths(into).model("dti"), "train").report["mlflow_run_id"] is None, "no new run is recorded"
    refused = CliRunner().invoke(cli.app, arguments)
    assert refused.exit_code == 2
    assert "exists: a run is made again in a fresh folder" in refused.output


def test_a_certificate_is_kept_with_the_version_whatever_it_says(
    made: tuple[Config, Paths, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, paths, run_id = made
    monkeypatch.setenv("DTI_HOME", str(paths.home))
    store, forward = MlflowClient(paths.tracking_uri), CTRModel.forward
    arguments = ["certify", "models:/dti@dti", "--rows", "4"]
    for told, code, outcome in ((0.0, 0, "passed"), (1.0, 1, "failed")):
        monkeypatch.setattr(
            CTRModel, "forward", lambda self, batch, *m, x=told: forward(self, batch, *m) + x * batch.label
        )
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == code, done.output
        assert ("failed: models:/dti@dti is not certified" in done.output) == bool(code)
        (version,) = store.search_model_versions(f"run_id = '{run_id}'")
        assert version.tags["certificate"] == store.get_run(run_id).data.tags["certificate"] == outcome
        assert version.tags["certificate.model"] == artifacts.folder_digest(paths.model("dti"))
        kept = {file.path for file in store.list_artifacts(run_id, "certificate")}
        assert {"certificate/certificate.json", "certificate/certificate.md"} <= kept


def test_other_parameters_are_not_equal_and_said_so(made: tuple[Config, Paths, str], tmp_path: Path) -> None:
    found = again(made, tmp_path / "again", seed=8)
    differs = {one.part for one in found.compared if not one.equal}
    assert differs == {"weights", "training", "metrics"}
    weights = next(one for one in found.compared if one.name == "lm/model.safetensors")
    assert weights.difference is not None
    assert weights.difference > 1e-4
    assert "NOT EQUAL" in page.text(found)
    with pytest.raises(CheckFailed, match=rf"^run {made[2]} is not reproduced: \d+ of \d+ are not equal, first "):
        check(found.equal, found.sentence, found)


def test_a_changed_log_is_named_unless_its_events_are_left(
    made: tuple[Config, Paths, str], log: Path, tmp_path: Path
) -> None:
    _, paths, run_id = made
    log.write_text(log.read_text() + "1,2,5,1000999999\n")
    found = again(made, tmp_path / "from events")
    assert found.equal
    assert found.made_from == f"the events, {paths.events}"
    kept = tmp_path / "kept"
    shutil.move(paths.events, kept)
    try:
        with pytest.raises(InputError, match=rf"log\.csv has digest \w+, and \w+ was read \(run {run_id}\), and the"):
            again(made, tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()
        _into_cache(kept, paths.home / ".dvc/cache/files/md5")
        found = again(made, tmp_path / "from the cache")
        assert found.equal
        assert found.made_from == f"the events, {paths.home / '.dvc/cache/files/md5'}"
    finally:
        shutil.move(kept, paths.events)
        shutil.rmtree(paths.home / ".dvc", ignore_errors=True)


def _into_cache(folder: Path, cache: Path) -> None:
    """A folder as DVC keeps it."""
    rows = []
    for path in sorted(folder.rglob("*")):
        md5 = artifacts.file_digest(path)
        (cache / md5[:2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, cache / md5[:2] / md5[2:])
        rows.append({"md5": md5, "relpath": path.relative_to(folder).as_posix()})
    digest = artifacts.folder_digest(folder)
    (cache / digest[:2]).mkdir(parents=True, exist_ok=True)
    (cache / digest[:2] / f"{digest[2:]}.dir").write_text(json.dumps(rows))


def test_runs_that_cannot_be_made_again_are_one_sentence(made: tuple[Config, Paths, str], tmp_path: Path) -> None:
    config, paths, run_id = made
    with pytest.raises(InputError, match=r"^run 0123 is not in this MLflow store$"):
        tracking.recorded(config, paths, "0123")
    store = MlflowClient(paths.tracking_uri)
    other = store.create_run(store.get_run(run_id).info.experiment_id, tags={"mlflow.source.name": "dti compare"})
    with pytest.raises(InputError, match=r"is one of `dti compare`, not of a training$"):
        tracking.recorded(config, paths, other.info.run_id)
    run = tracking.recorded(config, paths, run_id)
    for change, sentence in (
        ({"processes": 2}, "was trained by 2 processes"),
        ({"device": "cuda:0"}, "was trained on a GPU, and this machine has none"),
        ({"inputs": {"tokens": "x"}}, "was trained where the events were not"),
    ):
        changed = replace(run, record=run.record | change)
        with pytest.raises(InputError, match=sentence):
            reproduce.reproduce(config, paths, changed, tmp_path / "again", lambda *_: None)
    assert not (tmp_path / "again").exists()
