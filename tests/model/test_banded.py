"""Attention in bands, on a CPU, is attention under the whole mask: outputs and gradients, of all rows and of [SUM]s."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from dti_pipeline.modeling.attention.backends import BAND, Banded
from dti_pipeline.modeling.attention.sums.banded import BandedSums
from dti_pipeline.modeling.attention.sums.blocked import blocked_sum_attention
from dti_pipeline.modeling.masks.visibility import Intervals, dense, intervals
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.paradigms import named, names
from tests.model.conftest import Log, filled, k_of, small_model

PARADIGMS = pytest.mark.parametrize("paradigm", names())
PREFIX = pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])


def batch_of(paradigm: str, prefix: tuple[int, ...], context: int = 3) -> tuple[Batch, Intervals]:
    """Rows of a length that is no multiple of a band."""
    log = Log.random(users=30, seed=5, shortest=8, prefix=prefix)
    batch = filled(log, log.rows(context, k_of(paradigm), 2 * BAND + 52))
    return batch, intervals(batch.tokens, named(paradigm), context)


def drawn(batch: Batch, heads: int = 4, kv_heads: int = 2) -> list[Tensor]:
    """Queries, keys and values, whose gradients are asked for."""
    draw, (rows, length) = torch.Generator().manual_seed(3), batch.token.shape
    shapes = [(rows, h, length, 8) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=draw).requires_grad_() for shape in shapes]


def with_gradients(out: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(4))
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@PARADIGMS
@PREFIX
def test_bands_are_the_whole_mask(paradigm: str, prefix: tuple[int, ...]) -> None:
    batch, spans = batch_of(paradigm, prefix)
    banded, whole = Banded.of(spans), dense(spans)
    for q, k, mask in banded.bands:
        stop = q + mask.shape[2]
        assert torch.equal(mask[:, 0], whole[:, q:stop, k:stop])
        assert not whole[:, q:stop, :k].any()
        assert not whole[:, q:stop, stop:].any()
    assert len(banded.bands) == 3
    module: Any = None
    leaves = drawn(batch)
    expected = scaled_dot_product_attention(*leaves, attn_mask=whole[:, None], scale=0.3, enable_gqa=True)
    found = banded.attend(module, *leaves, scale=0.3, layer=None)
    torch.testing.assert_close(with_gradients(found, leaves), with_gradients(expected, leaves))


@PARADIGMS
@PREFIX
def test_sum_rows_in_bands_are_those_in_blocks(paradigm: str, prefix: tuple[int, ...]) -> None:
    batch, spans = batch_of(paradigm, prefix)
    model = small_model(paradigm, 3, prefix=len(prefix))
    builder, module, layer = model.attention, None, None
    slim = model.batch_attention(batch, model.embed(batch), last_layer_at_sums=True).sums
    assert slim is not None
    assert isinstance(slim.operator, BandedSums)
    full = builder.sums(batch, spans, model.embed(batch), named(paradigm), model.trained_tokens, model.slopes)
    assert full.operator is blocked_sum_attention
    query, key, value = drawn(batch)
    query = query.detach()[:, :, : slim.slot.shape[1]].requires_grad_()
    outcomes = []
    for rows in (slim, full):
        out = rows.operator(module, query, key, value, rows, 0.3, layer)
        outcomes.append(with_gradients(out * rows.valid[:, None, :, None], [query, key, value]))
    torch.testing.assert_close(*outcomes)
