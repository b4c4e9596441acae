"""MLflow's model registry: every training is a version of one registered model, which has the experiment's name.

A version's aliases: its paradigm, on the newest of each; ``champion``, on the one that may serve.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas
import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema
from mlflow.utils.file_utils import local_file_uri_to_path

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.report import Comparison
from dti_pipeline.packing.words import stand_in
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import mlflow_store
from dti_pipeline.training.report import Texts, TrainReport

log = logging.getLogger(__name__)

CHAMPION = "champion"
ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


def example(texts: Texts) -> dict[str, Any]:
    """A request that a model with these texts answers: it has all that they need, and times where they need them."""
    named = texts.named
    of_item, user = ({name: stand_in(name) for name in names} for names in (named.columns, named.user_columns))
    by_text = of_item | ({"item_id": "3"} if "item_id" in named.names else {})
    history: list[dict[str, Any]] = [
        {"item_id": "1", "label": 1} | of_item,
        {"item_text": "A title", "label": 0} | by_text,
    ]
    asked: dict[str, Any] = {"candidates": [{"item_id": "2"} | of_item, {"item_text": "Another title"} | by_text]}
    if "gap" in named.names or texts.knowledge.feedback_delay is not None:
        history = [row | {"timestamp": 1_600_000_000 + 60 * i} for i, row in enumerate(history)]
        asked["timestamp"] = 1_600_000_000 + 3600
    return {"history": history} | asked | ({"user": user} if user else {})


def signature(texts: Texts) -> ModelSignature:
    """Of a model with these texts. MLflow passes on no value that is not named here; time stamps are whole seconds."""
    named = texts.named
    item = _texts("item_id", "item_text", *named.columns)
    user = [ColSpec(Object(_texts(*named.user_columns)), "user")] if named.user_columns else []
    row = [Property(name, DataType.long, required=False) for name in ("label", "timestamp")]  # null: not known yet
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(Array(Object([*item, *row, *_texts("request_id")])), "history"),  # oldest first
                ColSpec(Array(Object(item)), "candidates"),
                *user,
                ColSpec(DataType.long, "timestamp", required=False),
                ColSpec(DataType.string, "request_id", required=False),
            ]
        ),
        outputs=Schema([ColSpec(Array(DataType.double))]),  # one probability for each candidate
    )


def _texts(*names: str) -> list[Property]:
    return [Property(name, DataType.string, required=False) for name in names]


def model_name(config: Config) -> str:
    """The registered model that this project's trainings are versions of."""
    return re.sub(r"[/:]", "-", config.tracking.experiment)  # a registered model takes neither


def register(store: MlflowClient, config: Config, folder: Path, run: Run) -> ModelVersion:
    """The version of the model that ``run`` trained, made from its published ``folder`` where there is none yet."""
    name, paradigm = model_name(config), run.data.tags["paradigm"]
    known = _versions(store, name, run.info.run_id)
    version = known[0] if known else _make_version(store, name, paradigm, _logged(store, folder, run), run)
    # Also of a known one: a process may have been killed between the version and this.
    _name_newest(store, name, paradigm)
    # As MLflow's own `register_model` does, for the page of models and the table of runs.
    link = json.dumps([{"name": name, "version": version.version}])
    store.set_logged_model_tags(version.source.rpartition("/")[2], {"mlflow.modelVersions": link})
    return version


def _make_version(store: MlflowClient, name: str, paradigm: str, model_id: str, run: Run) -> ModelVersion:
    try:
        store.create_registered_model(name, description="P(click) of candidates, given a user's history.")
    except MlflowException:  # it is there
        store.get_registered_model(name)
    default = mlflow.get_tracking_uri()  # in which MLflow looks a version's model up, whatever store was asked
    mlflow.set_tracking_uri(store.tracking_uri)
    try:
        return store.create_model_version(
            name, f"models:/{model_id}", run.info.run_id, tags={"paradigm": paradigm}, model_id=model_id
        )
    finally:
        mlflow.set_tracking_uri(default)


def _name_newest(store: MlflowClient, name: str, paradigm: str) -> None:
    """Give a paradigm's alias to its newest version, where another has it."""
    numbers = [
        int(one.version) for one in store.search_model_versions(f"tags.paradigm = '{paradigm}'") if one.name == name
    ]
    newest = str(max(numbers))
    if str(store.get_registered_model(name).aliases.get(paradigm)) != newest:
        store.set_registered_model_alias(name, paradigm, newest)


def _versions(store: MlflowClient, name: str, run_id: str) -> list[ModelVersion]:
    """Versions of a model that a run made. The name stays out of the filter, whose quotes it might end."""
    return [one for one in store.search_model_versions(f"run_id = '{run_id}'") if one.name == name]


def versions_of(store: MlflowClient, config: Config, run_id: str, digest: str) -> list[ModelVersion]:
    """Versions that a run made of the folder with this digest."""
    found = _versions(store, model_name(config), run_id)
    return [one for one in found if store.get_logged_model(one.source.rpartition("/")[2]).tags.get("digest") == digest]


def address_of(store: MlflowClient, config: Config, run_id: str) -> str | None:
    """Address of the version that a run made; None where it made none."""
    found = _versions(store, model_name(config), run_id)
    return f"models:/{found[0].name}/{found[0].version}" if found else None


def _logged(store: MlflowClient, folder: Path, run: Run) -> str:
    """The folder as a model of MLflow's, an output of the run; its id. What a killed process logged is used where it
    is whole and of this folder, and removed otherwise."""
    paradigm, texts = run.data.tags["paradigm"], artifacts.read(folder, "train", TrainReport).report.texts
    tags = {"paradigm": paradigm, "digest": artifacts.folder_digest(folder)}
    for left in store.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        if left.status == LoggedModelStatus.READY and tags.items() <= left.tags.items():
            _as_output(store, run, left.model_id)
            return left.model_id
        store.delete_logged_model(left.model_id)
    model = store.create_logged_model(run.info.experiment_id, paradigm, run.info.run_id, tags, run.data.params, "CTR")
    status = "FAILED"
    try:
        with tempfile.TemporaryDirectory() as aside:
            mlflow.pyfunc.save_model(
                Path(aside) / "model",
                mlflow_model=Model(model_id=model.model_id),
                python_model=str(Path(__file__).with_name("served_model.py")),
                artifacts={"model": str(folder)},
                signature=signature(texts),
                input_example=pandas.DataFrame([example(texts)]),
                pip_requirements=["dti-pipeline"],
            )
            store.log_model_artifacts(model.model_id, str(Path(aside) / "model"))
        status = "READY"
    finally:
        store.finalize_logged_model(model.model_id, status)
    _as_output(store, run, model.model_id)
    return model.model_id


def _as_output(store: MlflowClient, run: Run, model_id: str) -> None:
    """Note a model as an output of its run, once."""
    outputs = store.get_run(run.info.run_id).outputs
    if outputs is None or model_id not in [output.model_id for output in outputs.model_outputs]:
        store.log_outputs(run.info.run_id, [LoggedModelOutput(model_id, step=0)])


def promote(config: Config, paths: Paths, comparison: Comparison, paradigm: str) -> str | None:
    """Give the alias ``champion`` to the version of a compared paradigm; return its address, ``models:/dti/3``.

    None where the model was trained without a record.
    """
    store, _ = mlflow_store.connect(config, paths)
    name, run_id = model_name(config), comparison.paradigms[paradigm].mlflow_run_id
    versions = _versions(store, name, run_id) if run_id else []
    if not versions:
        log.warning("%s was not trained with a record in this store: nobody is promoted", paradigm)
        return None
    store.set_registered_model_alias(name, CHAMPION, versions[0].version)
    return f"models:/{name}/{versions[0].version}"


def folder(config: Config, paths: Paths, address: str) -> Path:
    """The model folder behind ``models:/name@alias`` or ``models:/name/3``: where the store has it on this machine, or
    downloaded once, into models/.registry. InputError where the registry does not have it."""
    store = MlflowClient(mlflow_store.uri(config, paths))
    version = _version(store, address)
    location = store.get_model_version_download_uri(version.name, version.version)
    if location.startswith(("/", "file://")):
        root = Path(local_file_uri_to_path(location))
    else:
        root = paths.registry / version.source.rpartition("/")[2]
        if not root.is_dir():
            root.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root.parent) as aside:
                Path(download_artifacts(location, dst_path=aside, tracking_uri=store.tracking_uri)).rename(root)
    return _published(root, address)


def _version(store: MlflowClient, address: str) -> ModelVersion:
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise InputError(f"{address} must read models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = parts["name"], parts["alias"], parts["version"]
    try:
        return store.get_model_version_by_alias(name, alias) if alias else store.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise InputError(f"{address} could not be looked up: {error.message}") from None
    try:
        known = store.get_registered_model(name).aliases
    except MlflowException:
        models = ", ".join(model.name for model in store.search_registered_models()) or "no model at all"
        raise InputError(f"{address} is not in the registry: it has {models}") from None
    aliases = ", ".join(f"{alias} (version {number})" for alias, number in known.items()) or "none"
    raise InputError(f"{address} is not in the registry; aliases of {name}: {aliases}")


def _published(root: Path, address: str) -> Path:
    """The folder that `dti train` published, inside MLflow's model at ``root``."""
    try:
        flavors = yaml.safe_load((root / "MLmodel").read_text(encoding="utf-8"))["flavors"]
        found = root / flavors["python_function"]["artifacts"]["model"]["path"]
    except (OSError, KeyError, TypeError):
        raise InputError(f"{address} was not made by `dti train`") from None
    artifacts.read(found, "train")
    return found
