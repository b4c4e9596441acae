"""The script that MLflow runs to build a served model ("models from code": nothing is pickled). Import nothing from it.

See :mod:`dti_pipeline.tracking.pyfunc`. Without ``from __future__ import annotations``: MLflow reads the annotations of
``predict`` as they stand, and warns of what it cannot evaluate.
"""

from pathlib import Path
from threading import Lock
from typing import Any

import mlflow
import pandas
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from dti_pipeline.errors import InputError


class CandidateScorer(PythonModel):
    """Histories and candidates, a row for each request, to a list of probabilities for each."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder."""
        from dti_pipeline.serving.scorer import Scorer

        self._scorer = Scorer.load(Path(context.artifacts["model"]))
        self._turn = Lock()  # `mlflow models serve` answers in threads, and a scorer is for one at a time

    def predict(
        self, context: PythonModelContext, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> list[list[float]]:
        """Probabilities of every request's candidates, in order; a bad request is one sentence that names its key."""
        try:
            with self._turn:
                return self._scorer.score(model_input)
        except InputError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


mlflow.models.set_model(CandidateScorer())
