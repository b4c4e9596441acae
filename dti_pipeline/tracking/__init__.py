"""Records of what was run, behind a few calls.

The pipeline calls these and knows no tracker. With ``tracking.enabled: false`` they do nothing and MLflow is never
imported; otherwise :mod:`dti_pipeline.tracking.mlflow_training` and its neighbours keep the records.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dti_pipeline.errors import InputError

if TYPE_CHECKING:
    from dti_pipeline.config import Config
    from dti_pipeline.paths import Paths
    from dti_pipeline.training.progress import Event

#: What MLflow reads while it is imported.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 7, its default, holds a training up for four minutes
}


class Run(Protocol):
    """The record of one training while it is written."""

    @property
    def id(self) -> str | None:
        """The tracker's name for the run; None where nothing is tracked."""

    def listen(self, event: Event) -> None:
        """Take one event of the training."""


class Untracked:
    """The record that nobody keeps."""

    id: str | None = None

    def listen(self, event: Event) -> None:
        """Forget it."""


@contextmanager
def training_run(config: Config, paths: Paths, paradigm: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """Open the record of a training, or go on with the one its checkpoint names; close it with what became of it.

    Of several processes of one training only the first keeps a record.
    """
    if not config.tracking.enabled or os.environ.get("RANK", "0") != "0":
        yield Untracked()
        return
    with _mlflow():
        from dti_pipeline.tracking import mlflow_training

        with mlflow_training.training_run(config, paths, paradigm, tags) as run:
            yield run


def record_evaluation(config: Config, paths: Paths, paradigm: str) -> None:
    """Put an evaluation's figures and plots onto the run that trained its model."""
    if config.tracking.enabled:
        with _mlflow():
            from dti_pipeline.tracking import mlflow_judgement

            mlflow_judgement.record_evaluation(config, paths, paradigm)


def record_comparison(config: Config, paths: Paths) -> None:
    """Group the compared trainings under one run that holds the comparison."""
    if config.tracking.enabled:
        with _mlflow():
            from dti_pipeline.tracking import mlflow_judgement

            mlflow_judgement.record_comparison(config, paths)


def promote(config: Config, paths: Paths, paradigm: str) -> str | None:
    """Give the alias ``champion`` to the registered model of ``paradigm`` that the present comparison judged.

    The pipeline calls it, whatever door it runs through, for the ``champion`` of reports/comparison.json, which passed
    :mod:`dti_pipeline.evaluation.gate`; ``tracking.promote: false`` leaves it to a person. A second call changes
    nothing. Returns the version's address (``models:/dti/3``); None where nothing is tracked, or where the model was
    trained without a record. Raises InputError where the comparison does not hold the paradigm.
    """
    if not config.tracking.enabled:
        return None
    with _mlflow():
        from dti_pipeline.tracking import registry

        return registry.promote(config, paths, paradigm)


def record_study(
    config: Config,
    paths: Paths,
    rows: list[dict[str, Any]],
    page: Callable[[list[dict[str, Any]], str], str],
    files: Mapping[str, Sequence[Path]],
) -> None:
    """Record a study's rows: an experiment for each log, a run for each group, its runs under it.

    ``page``: a group's tables in Markdown, of one log's rows; ``files``: what each group keeps, by folder.
    """
    if config.tracking.enabled:
        with _mlflow():
            from dti_pipeline.tracking import mlflow_study

            mlflow_study.record_study(config, paths, rows, page, files)


def model_folder(config: Config, paths: Paths, address: str) -> Path:
    """The model folder behind ``models:/name@alias`` or ``models:/name/3`` of the registry, on this machine.

    A model in a store on this machine is read where it lies; another is downloaded once. Raises InputError where the
    registry does not have it.
    """
    with _mlflow():
        from dti_pipeline.tracking import registry

        return registry.folder(config, paths, address)


@contextmanager
def _mlflow() -> Iterator[None]:
    """MLflow, quiet; raises InputError where it is not installed, and in one sentence what its store refuses."""
    if importlib.util.find_spec("mlflow") is None:
        raise InputError("MLflow is not installed: install it, or set tracking.enabled=false")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        said = " ".join(str(error.message).split())
        raise InputError(f"MLflow failed (tracking.enabled=false works without it): {said}") from error
