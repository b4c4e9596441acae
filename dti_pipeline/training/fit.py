"""Training of a given model on given rows: the loop without a stage's files, for whoever trains many times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate import Accelerator

from dti_pipeline.config import TrainingConfig
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.reader import Rows
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.fallback import choose
from dti_pipeline.training.forms import forms_of
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.steps import Steps
from dti_pipeline.training.threads import enough_threads


def fit(
    model: CTRModel,
    optimizer: torch.optim.AdamW,
    rows: Rows,
    settings: TrainingConfig,
    accelerator: Accelerator,
    should_stop: Callable[[], bool] = lambda: False,
) -> Progress | None:
    """Train ``model`` in place on all targets of ``rows``, as ``settings`` say, but without evaluations, checkpoints
    and averages; None where it was asked to stop."""
    settings = replace(settings, evaluations=0, checkpoint_seconds=10**9)
    steps = Steps(rows, settings.targets_per_step, settings.epochs, settings.seed)
    loader = Loader(rows, steps, settings.tokens_per_batch, accelerator.device)
    progress = Progress()
    model.train()
    forms = forms_of(model, optimizer, accelerator, settings)
    with enough_threads(accelerator.device, loader.rows_per_batch * rows.row_length * model.width):
        chosen = choose(forms, loader, 0, optimizer, accelerator, lambda fall: None)
        trainer = Trainer(
            model, chosen.runner, chosen.loader, accelerator, settings, progress,
            emit=lambda event: None, evaluate=dict, checkpoint=lambda: None,
        )  # fmt: skip
        return progress if trainer.run(should_stop) else None
