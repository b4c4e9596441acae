"""The registry: a version for each training, aliases that move, and a champion that only a comparison makes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _enforce_schema

from dti_pipeline import artifacts, config, pipeline, tracking
from dti_pipeline.errors import InputError
from dti_pipeline.packing.report import Knowledge
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import registry
from dti_pipeline.training.report import Texts, TrainReport
from tests.pipeline.recorded import publish_comparison, settings, store, train


def aliases(home: Paths) -> dict[str, str]:
    return {alias: str(version) for alias, version in store(home).get_registered_model("dti").aliases.items()}


def test_every_training_is_a_version_and_its_paradigm_names_the_newest(tracked: Paths) -> None:
    runs = [train(tracked), train(tracked, "sliding_window"), train(tracked)]
    versions = store(tracked).search_model_versions("name = 'dti'")
    assert {v.run_id: int(v.version) for v in versions} == {run: number for number, run in enumerate(runs, 1)}
    assert aliases(tracked) == {"sliding_window": "2", "dti": "3"}


def test_an_alias_that_a_killed_process_left_on_the_older_version_moves_at_the_next_record(tracked: Paths) -> None:
    train(tracked)
    run_id = train(tracked)
    store(tracked).set_registered_model_alias("dti", "dti", "1")
    run = store(tracked).get_run(run_id)
    registry.register(store(tracked), settings(tracked), tracked.model("dti"), run)
    assert aliases(tracked) == {"dti": "2"}
    assert len(store(tracked).search_model_versions("name = 'dti'")) == 2


def test_a_version_has_its_signature_and_an_example_and_is_the_runs_output(tracked: Paths) -> None:
    run = store(tracked).get_run(train(tracked))
    (output,) = run.outputs.model_outputs
    model = store(tracked).get_logged_model(output.model_id)
    assert model.status == "READY"
    assert model.params["training.epochs"] == run.data.params["training.epochs"]
    files = Path(model.artifact_location.removeprefix("file://"))
    assert {"MLmodel", "input_example.json"} <= {file.name for file in files.iterdir()}
    assert "candidates" in (files / "MLmodel").read_text()


def test_a_signature_lets_through_what_a_request_may_say() -> None:
    """Times, labels that are not known yet, and the columns that the template names."""
    asked: dict[str, Any] = {
        "history": [{"item_id": "1", "label": None, "timestamp": 5, "genres": "Drama"}, {"item_text": "A", "label": 1}],
        "candidates": [{"item_id": "2", "genres": "Crime"}],
        "timestamp": 9,
    }
    texts = Texts("{gap} {item_text} {genres}", 32, (), Knowledge(), "{age}")
    asked["user"] = {"age": "25"}
    inputs = registry.signature(texts).inputs
    assert _enforce_schema(pandas.DataFrame([asked]), inputs).to_dict("records") == [asked]
    with pytest.raises(MlflowException, match="genres"):
        _enforce_schema(pandas.DataFrame([asked]), registry.signature(replace(texts, template="{item_text}")).inputs)
    del asked["user"]
    with pytest.raises(MlflowException, match="user"):
        _enforce_schema(pandas.DataFrame([asked]), inputs)


@pytest.mark.parametrize(
    ("template", "knowledge", "times"),
    [
        ("{item_text}", Knowledge(), False),
        ("{gap} {item_text}", Knowledge(), True),
        ("{item_text}", Knowledge(feedback_delay=60.0), True),
    ],
)
def test_an_example_has_times_where_the_model_needs_them(template: str, knowledge: Knowledge, times: bool) -> None:
    asked = registry.example(Texts(template, 32, (), knowledge))
    assert ("timestamp" in asked) == times
    assert all(("timestamp" in row) == times for row in asked["history"])


def test_the_champion_is_the_version_that_was_compared(tracked: Paths) -> None:
    runs = {"dti": train(tracked), "sliding_window": train(tracked, "sliding_window")}
    comparison = publish_comparison(tracked, runs)
    train(tracked)  # a newer one that nobody has evaluated
    for _ in range(2):
        assert registry.promote(settings(tracked), tracked, comparison, "dti") == "models:/dti/1"
        assert aliases(tracked) == {"champion": "1", "sliding_window": "2", "dti": "3"}
    assert registry.promote(settings(tracked), tracked, comparison, "sliding_window") == "models:/dti/2"
    assert aliases(tracked)["champion"] == "2"


@pytest.mark.parametrize(
    ("champion", "promote", "expected"),
    [("dti", "true", "1"), ("dti", "false", None), (None, "true", None)],
)
def test_a_comparison_moves_the_alias_by_itself_unless_told_not_to(
    tracked: Paths, monkeypatch: pytest.MonkeyPatch, champion: str | None, promote: str, expected: str | None
) -> None:
    runs = {"dti": train(tracked), "sliding_window": train(tracked, "sliding_window")}
    monkeypatch.setattr(
        "dti_pipeline.evaluation.compare.compare", lambda *_: publish_comparison(tracked, runs, champion=champion)
    )
    told = config.load(tracked.params, [f"tracking.promote={promote}"])
    pipeline.execute(pipeline.COMPARE, told, tracked)
    assert aliases(tracked).get("champion") == expected


def test_what_has_no_record_is_not_promoted(tracked: Paths, caplog: pytest.LogCaptureFixture) -> None:
    comparison = publish_comparison(tracked, {"dti": None})
    assert registry.promote(settings(tracked), tracked, comparison, "dti") is None
    assert "dti was not trained with a record in this store: nobody is promoted" in caplog.text


def test_an_address_leads_to_the_published_folder(tracked: Paths) -> None:
    run = train(tracked)
    for address in ("models:/dti@dti", "models:/dti/1"):
        folder = tracking.model_folder(settings(tracked), tracked, address)
        assert artifacts.read(folder, "train", TrainReport).report.mlflow_run_id == run
        assert tracked.mlflow_artifacts in folder.parents, "a store on this machine is read where it lies"


@pytest.mark.parametrize("name", ["my clicks", "é", "it's", "a[1]", "user_id=5", "a?b", "100%"])
def test_a_home_of_any_name_has_its_own_store_and_serves_from_it(tmp_path: Path, empty_store: Path, name: str) -> None:
    paths = Paths(tmp_path / name)
    paths.home.mkdir()
    shutil.copy(empty_store, paths.home / "mlflow.db")
    run = train(paths)
    assert all(path.is_relative_to(paths.home) for path in tmp_path.rglob("*") if path.is_file())
    folder = tracking.model_folder(settings(paths), paths, "models:/dti@dti")
    assert artifacts.read(folder, "train", TrainReport).report.mlflow_run_id == run
    assert paths.home in folder.parents


def test_a_home_whose_name_mlflow_would_read_as_another_is_refused(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "a%20b")
    paths.home.mkdir()
    with pytest.raises(InputError, match=r"MLflow takes the % in .*a%20b for an escape: rename"):
        train(paths)
    assert not list(paths.home.iterdir())


def test_a_quote_in_the_experiment_s_name_is_a_letter(tracked: Paths) -> None:
    tracked.params.write_text('tracking: {experiment: "it\'s"}')
    run = train(tracked)
    assert store(tracked).get_run(run).info.status == "FINISHED"
    assert tracking.model_folder(settings(tracked), tracked, "models:/it's@dti")


def test_a_model_elsewhere_is_fetched_once(tracked: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tracked)
    location = store(tracked).get_model_version_download_uri("dti", "1")
    fetched = []

    def fetch(uri: str, dst_path: str, tracking_uri: str) -> str:
        fetched.append(uri)
        target = Path(dst_path) / "artifacts"
        Path(location.removeprefix("file://")).rename(target)
        return str(target)

    monkeypatch.setattr(MlflowClient, "get_model_version_download_uri", lambda *_: "mlflow-artifacts:/1/models/m-1")
    monkeypatch.setattr(registry, "download_artifacts", fetch)
    folders = {tracking.model_folder(settings(tracked), tracked, "models:/dti@dti") for _ in range(2)}
    assert fetched == ["mlflow-artifacts:/1/models/m-1"]
    (folder,) = folders
    assert tracked.registry in folder.parents
    assert [child.is_dir() for child in tracked.registry.iterdir()] == [True], "nothing half is left beside it"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("models:/dti", "must read models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/dti@champion", "aliases of dti: dti \\(version 1\\)"),
        ("models:/dti/9", "is not in the registry; aliases of dti"),
        ("models:/other@champion", "is not in the registry: it has dti"),
    ],
)
def test_what_the_registry_does_not_have_is_one_sentence(tracked: Paths, address: str, says: str) -> None:
    train(tracked)
    with pytest.raises(InputError, match=says):
        tracking.model_folder(settings(tracked), tracked, address)
