"""On CUDA, [SUM]s of small models that have a rule of their own see nothing in FlexAttention, and what replaces their
rows leaves its gradient as it is: the same model, and the same gradients, as where they see what the mask shows."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dti_pipeline.modeling import attention
from dti_pipeline.modeling.attention import View
from dti_pipeline.modeling.batch import Batch
from dti_pipeline.modeling.ctr_model import CTRModel
from dti_pipeline.modeling.masks import BlockMasks, dense, intervals, visible
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paths import PARADIGMS
from tests.model.conftest import TOLERANCE, Log, filled, histories, k_of, small_model
from tests.model.flex import outcome, pairs_of_blocks, plain_flex

CPU, LENGTH = torch.device("cpu"), 256
logs = st.builds(Log.random, prefix=st.sampled_from([(), (9, 8, 7)]), **histories)


@pytest.mark.parametrize("paradigm", PARADIGMS)
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]), size=st.sampled_from([8, 32, 96]))
@settings(max_examples=8, deadline=None)
def test_they_see_nothing_and_all_others_what_they_saw(
    paradigm: str, log: Log, n: int, k: int | None, size: int
) -> None:
    """In both forms; and no block is full for one of them, which would be taken without a look at the mask."""
    batch = log.batch(n, k, row_length=LENGTH)
    blind = intervals(batch.tokens, paradigm, n).blind_sums()
    expected = visible(batch.tokens, paradigm, n) & (batch.kind != Kind.SUM)[:, :, None]
    assert torch.equal(dense(blind), expected)
    mask = BlockMasks(*batch.token.shape, CPU, len(log.store.prefix) > 0, block_size=size).build(blind)
    row, slot = torch.arange(len(batch.token))[:, None, None], torch.arange(LENGTH)
    assert torch.equal(mask.mask_mod(row, 0, slot[:, None], slot[None, :]), expected)
    looked_at, full = (pairs[:, :LENGTH, :LENGTH] for pairs in pairs_of_blocks(mask))
    assert not (full & ~expected).any()
    assert not (expected & ~full & ~looked_at).any()


def test_what_replaces_rows_that_saw_nothing_erases_no_gradient() -> None:
    """Nor does filling have one: the [SUM] that it repeats has it already. The last row has no [SUM] at all."""
    log = Log.random(users=6, seed=5, shortest=6)
    batch = filled(log, log.rows(3, 4, 128))
    model = small_model("dti", 3, forgetting="linear")
    sums = model._sum_rows(batch, intervals(batch.tokens, "dti", 3), model.embed(batch))
    assert not sums.valid[:-1].all()
    draw = torch.Generator().manual_seed(1)
    out, rows, weight = (torch.randn(*x.shape, 4, 8, generator=draw) for x in (batch.token, sums.slot, batch.token))
    found = []
    for unread in (True, False):
        leaves = [x.clone().requires_grad_() for x in (out, rows)]
        put = sums.put(*leaves, unread=unread)
        found.append([put.detach(), *torch.autograd.grad((put * weight).sum(), leaves)])
    (result, d_out, d_rows), (result_of_scatter, d_out_of_scatter, d_rows_of_scatter) = found
    is_sum = batch.kind == Kind.SUM
    assert torch.equal(result, result_of_scatter)
    assert torch.equal(result[is_sum], rows[sums.valid])
    assert torch.equal(result[:-1][~is_sum[:-1]], out[:-1][~is_sum[:-1]])
    assert torch.equal(d_rows, d_rows_of_scatter)
    assert torch.equal(d_rows[sums.valid], weight[is_sum])
    assert not d_rows[~sums.valid].any()
    assert torch.equal(d_out, weight)
    assert not d_out_of_scatter[is_sum].any()


@pytest.mark.parametrize("forgetting", ["none", "linear"])
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_model_has_the_same_gradients(
    paradigm: str, prefix: tuple[int, ...], forgetting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log.random(users=5, seed=5, shortest=6, prefix=prefix)
    batch = filled(log, log.rows(3, k_of(paradigm), LENGTH))
    model = small_model(
        paradigm, 3, prefix=len(prefix), initial_std=0.1, sum_position="nope_alibi", forgetting=forgetting
    )
    expected = outcome(model, batch)
    view = CTRModel.view

    def as_on_cuda(self: CTRModel, batch: Batch, embedded: Tensor, narrow: bool = False) -> View:
        blind = intervals(batch.tokens, self.paradigm, self.context).blind_sums()
        masks = BlockMasks(*batch.token.shape, CPU, self.has_prefix, block_size=32)
        return dataclasses.replace(view(self, batch, embedded), bands=None, block_mask=masks.build(blind))

    monkeypatch.setattr(CTRModel, "view", as_on_cuda)
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: plain_flex)
    torch.testing.assert_close(outcome(model, batch), expected, atol=TOLERANCE, rtol=1e-4)
    assert min(float(gradient.norm()) for gradient in expected[1].values()) > 1e-5
