"""Records of what was run, in MLflow. With ``tracking.enabled: false`` nothing is kept and MLflow is never imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dti_pipeline.backtest.report import BacktestReport
from dti_pipeline.certify.report import Certificate
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.report import Comparison, Evaluation

if TYPE_CHECKING:
    from dti_pipeline.config import Config
    from dti_pipeline.paths import Paths
    from dti_pipeline.reproduction.report import Recorded
    from dti_pipeline.training.progress import Listener

Rows = list[dict[str, Any]]  # of a study
#: Environment that MLflow reads while it is imported.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 7, its default, holds a training up for four minutes
}


@contextmanager
def listener(config: Config, paths: Paths, tags: Mapping[str, str]) -> Iterator[Listener]:
    """A listener that keeps the record of a training, ``tags`` on it, and answers ``Started`` with the record's id.

    An error that leaves the block ends the record FAILED, or KILLED for an interruption.
    """
    if not config.tracking.enabled:
        yield lambda event: None
        return
    with _mlflow():
        from dti_pipeline.tracking.mlflow_training import TrainingRecord

        kept = TrainingRecord(config, paths, tags)
        try:
            yield kept
        except BaseException as error:
            kept.fail(error)
            raise


def record(config: Config, paths: Paths, report: object) -> None:
    """Keep an evaluation on the run that trained its model; a certificate likewise, and on its version; a comparison as
    a run that groups the compared trainings; a backtest as a run with a child for each day.

    A comparison's champion is promoted, unless ``tracking.promote`` is false.
    """
    if not config.tracking.enabled or not isinstance(report, (Evaluation, Comparison, BacktestReport, Certificate)):
        return
    with _mlflow():
        from dti_pipeline.tracking import mlflow_backtest, mlflow_certificate, mlflow_evaluation, registry

        if isinstance(report, BacktestReport):
            mlflow_backtest.record_backtest(config, paths, report)
        elif isinstance(report, Certificate):
            mlflow_certificate.record_certificate(config, paths, report)
        elif isinstance(report, Evaluation):
            mlflow_evaluation.record_evaluation(config, paths, report)
        else:
            mlflow_evaluation.record_comparison(config, paths, report)
            if config.tracking.promote and report.champion is not None:
                registry.promote(config, paths, report, report.champion)


def record_study(
    config: Config, paths: Paths, rows: Rows, page: Callable[[Rows, str], str], files: Mapping[str, Sequence[Path]]
) -> None:
    """Record a study's rows, see :func:`mlflow_study.record_study`."""
    if config.tracking.enabled:
        with _mlflow():
            from dti_pipeline.tracking import mlflow_study

            mlflow_study.record_study(config, paths, rows, page, files)


def model_folder(config: Config, paths: Paths, address: str) -> Path:
    """The model folder behind ``models:/name@alias`` or ``models:/name/3``, see :func:`registry.folder`."""
    with _mlflow():
        from dti_pipeline.tracking import registry

        return registry.folder(config, paths, address)


def recorded(config: Config, paths: Paths, run_id: str) -> Recorded:
    """A training by its run, see :func:`mlflow_record.recorded`."""
    with _mlflow():
        from dti_pipeline.tracking import mlflow_record

        return mlflow_record.recorded(config, paths, run_id)


def champion(config: Config) -> str:
    """Address of the model that may serve: ``models:/dti@champion``."""
    with _mlflow():
        from dti_pipeline.tracking import registry

        return f"models:/{registry.model_name(config)}@{registry.CHAMPION}"


@contextmanager
def _mlflow() -> Iterator[None]:
    """MLflow, quiet; raises InputError where it is not installed, and in one sentence what its store refuses."""
    if importlib.util.find_spec("mlflow") is None:
        raise InputError("MLflow is not installed: install it, or set tracking.enabled=false")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        said = " ".join(str(error).split()).partition(" [SQL: ")[0]
        raise InputError(f"MLflow failed (tracking.enabled=false works without it): {said}") from error
