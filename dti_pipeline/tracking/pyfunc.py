"""A trained model as MLflow's own kind of model: loads anywhere this package is installed, and scores the same.

MLflow runs this file to build the model ("models from code"), so that nothing is pickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema

if TYPE_CHECKING:
    import pandas

FOLDER = "model"  # name of the model folder among MLflow's artifacts
_ITEM = (
    Property("item_id", DataType.string, required=False),
    Property("item_text", DataType.string, required=False),
)
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(Array(Object([*_ITEM, Property("label", DataType.long)])), "history"),  # oldest first
            ColSpec(Array(Object([*_ITEM])), "candidates"),
        ]
    ),
    outputs=Schema([ColSpec(Array(DataType.double))]),  # one probability for each candidate
)
EXAMPLE = {
    "history": [[{"item_id": "1", "label": 1}, {"item_text": "A title", "label": 0}]],
    "candidates": [[{"item_id": "2"}, {"item_text": "Another title"}]],
}


class CandidateScorer(PythonModel):
    """Histories and candidates, a row for each request, to a list of probabilities for each."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model folder."""
        from dti_pipeline.serving.scorer import Scorer

        self._scorer = Scorer.load(Path(context.artifacts[FOLDER]))

    def predict(
        self, context: PythonModelContext, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> list[list[float]]:
        """Probabilities of every request's candidates, in order."""
        return self._scorer.score(model_input)


def save(folder: Path, target: Path) -> None:
    """Write the model folder ``folder`` as an MLflow model into ``target``, which does not exist yet."""
    import pandas

    mlflow.pyfunc.save_model(
        target,
        python_model=__file__,
        artifacts={FOLDER: str(folder)},
        signature=SIGNATURE,
        input_example=pandas.DataFrame(EXAMPLE),
        pip_requirements=["dti-pipeline"],
    )


mlflow.models.set_model(CandidateScorer())
