"""The project's training loop by itself: what benchmarks time, and score the outcome of."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from dti_pipeline.config import TrainingConfig
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.loop import Trainer


def bare_trainer(
    model: nn.Module,
    optimizer: Optimizer,
    accelerator: Accelerator,
    config: TrainingConfig,
    loader: Loader,
    progress: Progress,
) -> Trainer:
    """A training that tells nobody, evaluates nothing and saves nothing."""
    return Trainer(
        model=model,
        optimizer=optimizer,
        accelerator=accelerator,
        config=config,
        loader=loader,
        progress=progress,
        emit=lambda event: None,
        evaluate=dict,
        checkpoint=lambda: None,
    )
