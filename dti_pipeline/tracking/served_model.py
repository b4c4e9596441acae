"""What MLflow runs to build a served model ("models from code", so that nothing is pickled). Import nothing from here.

See :mod:`dti_pipeline.tracking.pyfunc`. Without ``from __future__ import annotations``: MLflow reads the annotations of
``predict`` as they stand, and warns of what it cannot evaluate.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas
from mlflow.pyfunc import PythonModel, PythonModelContext


class CandidateScorer(PythonModel):
    """Histories and candidates, a row for each request, to a list of probabilities for each."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder."""
        from dti_pipeline.serving.scorer import Scorer

        self._scorer = Scorer.load(Path(context.artifacts["model"]))

    def predict(
        self, context: PythonModelContext, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> list[list[float]]:
        """Probabilities of every request's candidates, in order."""
        return self._scorer.score(model_input)


mlflow.models.set_model(CandidateScorer())
