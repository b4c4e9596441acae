"""FlexAttention for tests: written out, so that it can be differentiated on a CPU, and what its blocks say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxOutput, BlockMask

from dti_pipeline.modeling.attention import backends
from dti_pipeline.modeling.attention.backends import Flex, ReorderedFlex
from dti_pipeline.modeling.attention.interface import Backend
from dti_pipeline.modeling.attention.sums.rows import SumRows
from dti_pipeline.modeling.masks.blocks import BlockMasks
from dti_pipeline.modeling.masks.reordered_blocks import ReorderedBlockMasks
from dti_pipeline.modeling.masks.visibility import Intervals
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.batch_attention import BatchAttentionBuilder
from dti_pipeline.modeling.network.ctr_model import CTRModel


def plain_flex(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, scale: float, enable_gqa: bool,
               kernel_options: Any, return_aux: Any = None) -> Any:  # fmt: skip
    """What FlexAttention's kernels compute, and can be differentiated on a CPU, as its own plain code cannot: where a
    query sees nothing there are zeros, and no gradient for anybody."""
    row, slot = torch.arange(len(query))[:, None, None], torch.arange(query.shape[2])
    mask = block_mask.mask_mod(row, 0, slot[:, None], torch.arange(key.shape[2])[None, :])[:, None]
    assert enable_gqa == (query.shape[1] != key.shape[1])
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~mask, -1e9)
    out = (scores.softmax(-1) * mask) @ value
    lse = torch.where(mask.any(-1), scores.logsumexp(-1), float("-inf"))
    return out if return_aux is None else (out, AuxOutput(lse=lse))


def pairs_of_blocks(mask: BlockMask) -> tuple[Tensor, Tensor]:
    """Pairs of queries and keys (B, lines, keys) in blocks that are looked at, and in those that are taken as full."""

    def spread(count: Tensor, blocks: Tensor) -> Tensor:
        listed = torch.arange(blocks.shape[-1]) < count[..., None]
        matrix = listed.new_zeros(blocks.shape).scatter(3, blocks.long(), listed)[:, 0]
        lines, keys = mask.BLOCK_SIZE
        return matrix.repeat_interleave(lines, 1).repeat_interleave(keys, 2)

    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    return spread(mask.kv_num_blocks, mask.kv_indices), spread(mask.full_kv_num_blocks, mask.full_kv_indices)


def attended(backend: Backend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function of queries, keys and values (B, H, L, D): what ``backend`` makes of them."""
    return lambda query, key, value: backend.attend(nn.Identity(), query, key, value, query.shape[-1] ** -0.5, None)


def flex_on_a_cpu(monkeypatch: pytest.MonkeyPatch, reordered: bool, heads: int = 1) -> None:
    """Let models on a CPU attend as they would on CUDA, with FlexAttention written out."""
    kind = ReorderedBlockMasks if reordered else BlockMasks
    made: dict[tuple[int, ...], BlockMasks] = {}

    def backend(
        self: BatchAttentionBuilder, batch: Batch, spans: Intervals, sums: SumRows | None, embedded: Tensor
    ) -> Backend:
        shape = tuple(batch.token.shape)
        if shape not in made:
            made[shape] = kind(*shape, torch.device("cpu"), self.has_prefix, 32, heads)
        masks = made[shape]
        block_mask = masks.build(spans)
        if isinstance(masks, ReorderedBlockMasks):
            assert sums is not None
            return ReorderedFlex(block_mask, {}, masks.keys, sums)
        return Flex(block_mask, {})

    monkeypatch.setattr(BatchAttentionBuilder, "backend", backend)
    monkeypatch.setattr(backends, "compiled_flex_attention", lambda: plain_flex)
    monkeypatch.setattr(backends, "flex_attention", plain_flex)


def with_gradients(attend: Callable[..., Tensor], given: Sequence[Tensor], direction: Tensor) -> list[Tensor]:
    """What ``attend`` makes of queries, keys and values, and their gradients along ``direction``; in fp32."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    out = attend(*leaves)
    return [x.float() for x in (out.detach(), *torch.autograd.grad((out * direction).sum(), leaves))]


def outcome(model: CTRModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of targets that count, and gradients."""
    model.zero_grad()
    logits = model(batch)
    logits = logits[batch.weight.bool()]
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.trained().items() if p.grad is not None}
