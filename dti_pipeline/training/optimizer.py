"""AdamW and its schedule, counted in targets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dti_pipeline.config import TrainingConfig
from dti_pipeline.training.flat import FlatAdamW, flattened


def optimizer_for(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW of a model where it is to be trained; weight decay on matrices only, as norms and biases are scales, not
    features. The weights become views of flat tensors; where processes hold parts of them, they stay as they are."""
    trained = [p for p in model.parameters() if p.requires_grad]
    options: dict[str, Any] = {"lr": config.learning_rate, "betas": (0.9, 0.98), "eps": config.adam_epsilon}
    if not any(isinstance(p, DTensor) for p in trained):
        flats = flattened(trained, _is_matrix)
        return FlatAdamW(flats, lambda flat: config.weight_decay * _is_matrix(flat.parts[0]), fused=True, **options)
    groups = [
        {"params": [p for p in trained if _is_matrix(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if not _is_matrix(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=any(p.is_cuda for p in trained), **options)


def _is_matrix(weight: nn.Parameter) -> bool:
    return weight.dim() >= 2


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every gradient that the optimizer's next step will read."""
    if isinstance(optimizer, FlatAdamW):
        return optimizer.gradients()
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    return [weight.grad for weight in weights if weight.grad is not None]


def allocate_moments(optimizer: torch.optim.AdamW) -> None:
    """Make the moments that AdamW would make in its first step, zeros, unless they are there: a step that is tried out
    before it then takes the memory that later ones will."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:
                step = torch.zeros((), device=parameter.device if group["fused"] else None)
                moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": step, **moments}


def learning_rate(config: TrainingConfig, targets_seen: int, targets_total: int) -> float:
    """Linear warm-up, then cosine to ``final_learning_rate_share`` of the peak; both counted in targets."""
    done = targets_seen / max(targets_total, 1)
    if done < config.warmup_share:
        return config.learning_rate * done / config.warmup_share
    rest = (done - config.warmup_share) / max(1 - config.warmup_share, 1e-9)
    floor = config.final_learning_rate_share
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(rest, 1.0))))
