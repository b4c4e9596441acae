"""The section of params.yaml about run records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingConfig:
    """Run records."""

    enabled: bool = True  # false: nothing is recorded and MLflow is not imported
    # MLflow's tracking URI. null: the environment's DTI_TRACKING_URI, else mlflow.db in the project's home.
    # MLFLOW_TRACKING_URI is not read: MLflow sets it while it works.
    uri: str | None = None
    experiment: str = "dti"  # also the name of the registered model whose versions its trainings are
    promote: bool = True  # a comparison gives the alias `champion` to the model that passed its gate; false: by hand
