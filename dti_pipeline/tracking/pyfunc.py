"""A trained model as MLflow's own kind of model: loads anywhere this package is installed, and scores the same."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pandas
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema

_ITEM = (
    Property("item_id", DataType.string, required=False),
    Property("item_text", DataType.string, required=False),
)
_SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(Array(Object([*_ITEM, Property("label", DataType.long)])), "history"),  # oldest first
            ColSpec(Array(Object([*_ITEM])), "candidates"),
        ]
    ),
    outputs=Schema([ColSpec(Array(DataType.double))]),  # one probability for each candidate
)
_EXAMPLE = {
    "history": [[{"item_id": "1", "label": 1}, {"item_text": "A title", "label": 0}]],
    "candidates": [[{"item_id": "2"}, {"item_text": "Another title"}]],
}


def save(folder: Path, target: Path, model_id: str) -> None:
    """Write a published model folder as the MLflow model ``model_id`` into ``target``, which does not exist yet."""
    mlflow.pyfunc.save_model(
        target,
        mlflow_model=Model(model_id=model_id),
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"model": str(folder)},
        signature=_SIGNATURE,
        input_example=pandas.DataFrame(_EXAMPLE),
        pip_requirements=["dti-pipeline"],
    )
