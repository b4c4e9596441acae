"""Report of a training, as the model's manifest has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dti_pipeline.packing.report import Knowledge
from dti_pipeline.packing.settings import TokensConfig
from dti_pipeline.plain import OPTIONAL


@dataclass(frozen=True)
class TrainingSummary:
    """Facts of a training that belong beside its quality."""

    train_seconds: float  # without warm-up, evaluation and checkpoints
    processor_seconds: float  # in them, of all threads of the first process
    targets: int  # seen, over all epochs
    targets_unique: int
    tokens: int  # seen, without padding
    steps: int  # of the optimizer
    targets_per_second: float
    tokens_per_second: float
    epochs: float
    seed: int
    parameters: int
    device: str  # cpu or cuda
    hardware: str  # what the seconds were measured on
    world_size: int  # processes
    mlflow_run_id: str | None  # None: trained without a record


@dataclass(frozen=True)
class Texts:
    """How items and users become tokens: with the tokenizer beside it, all that serving needs."""

    template: str
    max_text_tokens: int
    prefix_tokens: tuple[int, ...]
    knowledge: Knowledge
    user_template: str | None = field(default=None, metadata=OPTIONAL)

    @property
    def named(self) -> TokensConfig:
        """What the templates fill in."""
        return TokensConfig(template=self.template, user_template=self.user_template)


@dataclass(frozen=True)
class TrainReport(TrainingSummary):
    """A published model."""

    paradigm: str
    tokens_per_target: float  # of the training plan
    padding_share: float  # likewise
    loss: float | None  # mean of the last report, nats; None: no finite number
    validation_auc: float | None  # streaming, the last one; None: not measured
    parameters_trained: int
    peak_memory_gib: float
    fallbacks: tuple[str, ...]  # optimisations that could not be had, a line each
    texts: Texts
    network: dict[str, Any]  # that builds the network again, see dti_pipeline.modeling.network.storage
    execution: dict[str, Any]  # how steps were computed: a choice and its reason by name
    first_step: dict[str, float] = field(default_factory=dict)  # seconds until the last process's first step, by part
