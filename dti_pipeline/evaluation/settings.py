"""Sections of params.yaml about the evaluation and the comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dti_pipeline.plain import NonNegativeInt, PositiveInt, Range


@dataclass(frozen=True)
class EvaluationConfig:
    """The evaluation, the same for every paradigm."""

    split: Literal["validation", "test"] = "test"  # whose targets are scored
    # Of a forward pass; without gradients, so more than training's fit. Null: as many as suit the device, 131072 on a
    # GPU and 32768 on a CPU. Halved where a batch does not fit the GPU's memory.
    tokens_per_batch: PositiveInt | None = None
    bootstrap_samples: PositiveInt = 1000  # draws of users behind every interval; below a few hundred it is rough
    confidence: Annotated[float, Range(0, 1, "()")] = 0.95  # share of the draws inside an interval
    calibration_bins: PositiveInt = 10  # of equal mass, for the calibration curve and ECE
    seed: NonNegativeInt = 7  # of the draws


@dataclass(frozen=True)
class ComparisonConfig:
    """The gate a model must pass before it may serve."""

    # AUC: the interval of the difference to sliding_window must not reach below minus this.
    margin: Annotated[float, Range(0, 1, "[)")] = 0.01
