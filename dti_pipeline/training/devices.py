"""The device and the processes of a training, as accelerate holds them."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from dti_pipeline.config import TrainingConfig
from dti_pipeline.errors import InputError

#: Buffers never change: sending the first process's to all others with every step would cost for nothing, and under
#: model.frozen_weights float8 they are the whole model.
DDP = DistributedDataParallelKwargs(broadcast_buffers=False)


def accelerator_for(settings: TrainingConfig) -> Accelerator:
    """accelerate, on the configured device; the number of processes must be the configured one."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("params key `training.device` is cuda, but there is no CUDA device")
    for engine in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            raise InputError(
                f"accelerate was asked for {engine}, which would shard the weights beside this project: set"
                " distributed_type to MULTI_GPU, and training.sharding to full where a model does not fit one GPU"
            )
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    precision = "bf16" if settings.dtype == "bfloat16" else "no"
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision, kwargs_handlers=[DDP])
    if accelerator.num_processes != settings.processes:  # accelerate goes on with one where there is no launcher
        raise InputError(
            f"params key `training.processes` is {settings.processes}, but {accelerator.num_processes} are running:"
            f" start with `torchrun --nproc-per-node {settings.processes} -m dti_pipeline.cli train ..`"
        )
    return accelerator
