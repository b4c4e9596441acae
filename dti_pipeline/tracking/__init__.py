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
from typing import TYPE_CHECKING, Any

from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.report import Comparison, Evaluation

if TYPE_CHECKING:
    from dti_pipeline.config import Config
    from dti_pipeline.paths import Paths
    from dti_pipeline.training.progress import Listener

#: Environment that MLflow reads while it is imported.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 7, its default, holds a training up for four minutes
}


@contextmanager
def listener(config: Config, paths: Paths, tags: Mapping[str, str]) -> Iterator[Listener]:
    """A listener that keeps the record of a training, ``tags`` on it.

    It answers ``Started`` with the record's id: that of the event, where the store knows it, or a new one. The record
    ends FINISHED with the event ``Finished``; where an error leaves the block before, FAILED, or KILLED for an
    interruption.
    """
    if not config.tracking.enabled:
        yield lambda event: None
        return
    with _mlflow():
        from dti_pipeline.tracking import mlflow_training

        with mlflow_training.listener(config, paths, tags) as listen:
            yield listen


def record(config: Config, paths: Paths, report: object) -> None:
    """Keep a stage's report where the records have a place for it.

    An evaluation's figures and plots go onto the run that trained its model. A comparison becomes one run that groups
    the compared trainings, and its champion is promoted, unless ``tracking.promote`` is false.
    """
    if not config.tracking.enabled or not isinstance(report, (Evaluation, Comparison)):
        return
    with _mlflow():
        from dti_pipeline.tracking import mlflow_evaluation, registry

        if isinstance(report, Evaluation):
            mlflow_evaluation.record_evaluation(config, paths, report)
            return
        mlflow_evaluation.record_comparison(config, paths, report)
        if config.tracking.promote and report.champion is not None:
            registry.promote(config, paths, report, report.champion)


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
