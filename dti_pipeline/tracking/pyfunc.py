"""A trained model as MLflow's own kind of model: loads anywhere this package is installed, and scores the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
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


def described(folder: Path) -> dict[str, Any]:
    """Arguments for ``mlflow.pyfunc.save_model`` that make a model of a published model folder."""
    import pandas

    return {
        "python_model": str(Path(__file__).with_name("served_model.py")),
        "artifacts": {"model": str(folder)},
        "signature": _SIGNATURE,
        "input_example": pandas.DataFrame(_EXAMPLE),
        "pip_requirements": ["dti-pipeline"],
    }


def save(folder: Path, target: Path, model_id: str | None = None) -> None:
    """Write the model folder ``folder`` as an MLflow model into ``target``, which does not exist yet.

    ``model_id`` is the store's name for the model, where a store is to hold it.
    """
    mlflow.pyfunc.save_model(target, mlflow_model=Model(model_id=model_id), **described(folder))
