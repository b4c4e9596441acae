"""The project's own training loop by itself: benchmarks time it, and score the outcome."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch.optim import AdamW

from dti_pipeline.config import Config, TrainingConfig
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.plans import plan_rows
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.report import PlanReport
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import Paradigm
from dti_pipeline.training.checkpoint import Progress
from dti_pipeline.training.fallback import choose
from dti_pipeline.training.forms import forms_of
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.loop import Trainer
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.progress import FellBack
from dti_pipeline.training.steps import Steps


def rows_of(settings: Config, store: TokenStore, paradigm: Paradigm, plan: str = "train") -> tuple[Rows, PlanReport]:
    """A plan's rows, made in memory, and its counts."""
    counts, cut, row = plan_rows(settings, store, paradigm, plan)
    return Rows(store, settings.packing.tokens_a_row, cut.start, cut.first_target, cut.stop, row), counts


def model_of(settings: Config, store: TokenStore, paradigm: Paradigm, **more: Any) -> CTRModel:
    """The model of a configuration, untrained."""
    packing = settings.packing
    return CTRModel(
        settings.model, paradigm, packing.context, store.vocabulary, packing.tokens_a_row, store.special, **more
    )


def ready(model: CTRModel, device: torch.device, training: TrainingConfig) -> AdamW:
    """Place a model as a training does that shards nothing; return its optimizer."""
    compute = torch.bfloat16 if training.dtype == "bfloat16" else torch.float32
    model.place(model.make_plan(device, compute, cuda_graph=training.cuda_graph))
    return optimizer_for(model, training)


def trainer_of(
    model: CTRModel,
    optimizer: AdamW,
    accelerator: Accelerator,
    config: TrainingConfig,
    rows: Rows,
    progress: Progress | None = None,
) -> Trainer:
    """A training that tells nobody, evaluates nothing and saves nothing. Raises RuntimeError where the model's
    plan cannot be had: a benchmark measures what it names."""
    steps = Steps(rows, config.targets_per_step, config.epochs, config.seed)
    rank, world = accelerator.process_index, accelerator.num_processes
    loader = Loader(rows, steps, config.tokens_per_batch, accelerator.device, rank, world)
    model.train()
    forms = forms_of(model, optimizer, accelerator, config)
    chosen = choose(forms, loader, 0, optimizer, accelerator, _refuse)
    return Trainer(
        model=model,
        runner=chosen.runner,
        loader=chosen.loader,
        accelerator=accelerator,
        config=config,
        progress=progress or Progress(),
        emit=lambda event: None,
        evaluate=dict,
        checkpoint=lambda: None,
    )


def _refuse(fall: FellBack) -> None:
    raise RuntimeError(fall.line)
