"""Sharding (FSDP): every process holds a part of each weight, gradient and moment, where a model does not fit one GPU.

A layer's weights are gathered when it is computed, forward and again backward, and its gradients are averaged as they
are made (``fully_shard`` of torch, arXiv 2304.11277).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.speed import compiler


def shard(model: CTRModel, mesh: DeviceMesh, compute: torch.dtype | None) -> None:
    """Shard ``model`` in place over the processes of ``mesh``, a layer at a time; everything outside the layers is
    gathered for a whole pass. From the CPU's memory it moves to the GPUs so, and need never fit one as a whole.

    ``compute``: the precision that weights are gathered and used in, where it is not their own; gradients are averaged
    in fp32. The optimizer must be made afterwards: its parameters are new ones.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32 if compute else None)
    for layer in backbone.decoder_of(model.lm).layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def compile_layers(model: CTRModel) -> None:
    """Compile each layer's arithmetic alone: gathering its weights stays outside the graph."""
    compiler.allow_graphs()
    for layer in backbone.decoder_of(model.lm).layers:
        layer.forward = torch.compile(layer.forward, dynamic=False)


def uncompile_layers(model: CTRModel) -> None:
    for layer in backbone.decoder_of(model.lm).layers:
        layer.__dict__.pop("forward", None)


def reshard(model: nn.Module) -> None:
    """Free weights that a forward pass without a backward pass has left gathered; nothing where nothing is sharded."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors as one process would have them, on the CPU. All processes call it together; one that does not
    ``keep`` them gets none, and holds one at a time."""
    gathered = ((name, t.full_tensor() if isinstance(t, DTensor) else t) for name, t in tensors.items())
    return {name: tensor.detach().cpu() for name, tensor in gathered if keep}


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole ``tensor`` as ``model`` is held: this process's part of it, or all of it. No process asks another."""
    if not isinstance(model, DTensor) or tensor.shape != model.shape:
        return tensor
    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements, src_data_rank=None)
