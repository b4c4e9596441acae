"""Keys are moved so that no [SUM] stands among them: attention, gradients and the whole model stay what they are."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import pad, scaled_dot_product_attention

from dti_pipeline.modeling import attention
from dti_pipeline.modeling.attention import View, kernel_options
from dti_pipeline.modeling.backbone import decoder_of
from dti_pipeline.modeling.batch import Batch
from dti_pipeline.modeling.ctr_model import CTRModel
from dti_pipeline.modeling.masks import BlockMasks, intervals, visible
from dti_pipeline.modeling.text_keys import TextMasks
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paths import PARADIGMS
from tests.model.conftest import RULES, TOLERANCE, Log, filled, histories, k_of, small_model
from tests.model.flex import attended, outcome, pairs_of_blocks, plain_flex, with_gradients
from tests.model.test_precision import assert_near
from tests.model.test_precision import outcome as of_batch

CPU, LENGTH = torch.device("cpu"), 200
logs = st.builds(Log.random, prefix=st.sampled_from([(), (9, 8, 7)]), **histories)
HEADS = pytest.mark.parametrize("heads", [1, 2], ids=["head by head", "heads of a group together"])


@pytest.mark.parametrize("paradigm", PARADIGMS)
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]), size=st.sampled_from([8, 32, 96]),
       heads=st.sampled_from([1, 4]))  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_each_query_sees_the_keys_it_saw_where_they_have_gone(
    paradigm: str, log: Log, n: int, k: int | None, size: int, heads: int
) -> None:
    """But for a [SUM], which does not see itself; and nobody sees what fills up the last block, nor does that see
    anybody. By pairs and by blocks."""
    batch = log.batch(n, k, row_length=LENGTH)
    spans = intervals(batch.tokens, paradigm, n)
    masks = TextMasks(*batch.token.shape, CPU, len(log.store.prefix) > 0, block_size=size, heads=heads)
    mask = masks.build(spans)
    is_sum = batch.kind == Kind.SUM
    order, place = masks.keys[0][:, :LENGTH], masks.keys[1]
    assert torch.equal(order.sort().values, torch.arange(LENGTH).expand_as(order))
    assert torch.equal(order.gather(1, place), torch.arange(LENGTH).expand_as(order))
    assert torch.equal(is_sum.gather(1, order), is_sum.int().sort().values.bool()), "[SUM]s are behind all others"
    expected = visible(batch.tokens, paradigm, n) & ~(is_sum[:, :, None] & torch.eye(LENGTH, dtype=torch.bool))
    expected = expected.gather(2, order[:, None].expand_as(expected))
    expected = pad(expected, (0, masks.padded - LENGTH) * 2).repeat_interleave(heads, 1)
    row, (lines, keys) = torch.arange(len(batch.token))[:, None, None], mask.seq_lengths
    assert torch.equal(mask.mask_mod(row, 0, torch.arange(lines)[:, None], torch.arange(keys)[None, :]), expected)
    looked_at, full = pairs_of_blocks(mask)
    assert not (full & ~expected).any()
    assert not (expected & ~full & ~looked_at).any()


def test_most_blocks_of_a_long_context_are_full() -> None:
    """Where [SUM]s stand among the keys, none is."""
    batch = Log.of([[([5, 6, 7], 1) for _ in range(60)]]).batch(20, None, row_length=LENGTH, min_history=1)
    spans = intervals(batch.tokens, "dti", 20)
    kinds = (kind(*batch.token.shape, CPU, False, block_size=8) for kind in (BlockMasks, TextMasks))
    among, moved_away = (int(masks.build(spans).full_kv_num_blocks.sum()) for masks in kinds)
    assert moved_away > 3 * among


@HEADS
@pytest.mark.parametrize("paradigm", PARADIGMS)
@given(log=logs, n=st.integers(0, 6), seed=st.integers(0, 100))
@settings(max_examples=6, deadline=None)
def test_attention_and_its_gradients_are_the_dense_mask_s(
    paradigm: str, heads: int, log: Log, n: int, seed: int
) -> None:
    """Of rows filled up with targets that are there already, and of one that has none."""
    batch = filled(log, log.rows(n, k_of(paradigm), LENGTH))
    model = small_model(paradigm, n, prefix=len(log.store.prefix))
    spans = intervals(batch.tokens, paradigm, n)
    masks = TextMasks(*batch.token.shape, CPU, len(log.store.prefix) > 0, block_size=64, heads=heads)
    mask = masks.build(spans)
    view = View(block_mask=mask, texts=masks.keys, sums=model._sum_rows(batch, spans, model.embed(batch)))
    assert view.sums is not None
    assert not view.sums.differ
    draw = torch.Generator().manual_seed(seed)
    given = [torch.randn(len(batch.token), count, LENGTH, 16, generator=draw) for count in (4, 2, 2)]
    direction = torch.randn(given[0].shape, generator=draw)
    dense = visible(batch.tokens, paradigm, n)[:, None]
    expected = with_gradients(partial(scaled_dot_product_attention, attn_mask=dense, enable_gqa=True), given, direction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "_compiled_flex_attention", lambda: plain_flex)
        found = with_gradients(attended(view), given, direction)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)


@RULES
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_model_has_the_same_gradients(
    paradigm: str, prefix: tuple[int, ...], fixes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log.random(users=5, seed=5, shortest=6, prefix=prefix)
    batch = filled(log, log.rows(3, k_of(paradigm), LENGTH))
    model = small_model(paradigm, 3, prefix=len(prefix), initial_std=0.1, **fixes)
    expected = outcome(model, batch)
    monkeypatch.setattr(CTRModel, "view", as_on_cuda)
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: plain_flex)
    torch.testing.assert_close(outcome(model, batch), expected, atol=TOLERANCE, rtol=1e-4)
    assert min(float(gradient.norm()) for gradient in expected[1].values()) > 1e-6


view_on_a_cpu = CTRModel.view


def as_on_cuda(self: CTRModel, batch: Batch, embedded: Tensor, narrow: bool = False) -> View:
    """The view that a wide model has there."""
    spans = intervals(batch.tokens, self.paradigm, self.context)
    masks = self._block_masks.setdefault(
        (len(batch.token), LENGTH), TextMasks(len(batch.token), LENGTH, CPU, self.has_prefix, block_size=32, heads=2)
    )
    mask = masks.build(spans)
    assert isinstance(masks, TextMasks)
    made = view_on_a_cpu(self, batch, embedded, narrow)
    sums = self._sum_rows(batch, spans, embedded)
    return dataclasses.replace(made, bands=None, block_mask=mask, texts=masks.keys, sums=sums)


@RULES
def test_layers_are_two_graphs_without_a_break(fixes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last are one, forward and backward."""
    torch._dynamo.reset()
    monkeypatch.setattr(CTRModel, "view", as_on_cuda)
    monkeypatch.setattr(attention, "_compiled_flex_attention", lambda: plain_flex)
    monkeypatch.setattr(attention, "flex_attention", plain_flex)
    log = Log.random(users=5, seed=5, shortest=6)
    batch = filled(log, log.rows(3, 4, LENGTH))
    model = small_model("dti", 3, layers=4, initial_std=0.1, **fixes)
    expected = outcome(model, batch)
    compiler = CompileCounterWithBackend("aot_eager")
    for layer in decoder_of(model.lm).layers:
        layer.compile(dynamic=False, fullgraph=True, backend=compiler)
    for _ in range(2):
        torch.testing.assert_close(outcome(model, batch), expected, atol=TOLERANCE, rtol=1e-4)
    assert compiler.frame_count == 2
    torch._dynamo.reset()


# On a GPU


@pytest.mark.gpu
@RULES
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_compiled_model_whose_keys_are_moved_is_the_cpu_s(
    paradigm: str, prefix: tuple[int, ...], fixes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CTRModel, "waits_for_launches", False)  # as of a wide one
    cuda = torch.device("cuda")
    log = Log.random(users=12, seed=7, shortest=6, longest=20, prefix=prefix)
    batch = log.batch(4, k_of(paradigm), row_length=528)
    model = small_model(paradigm, 4, layers=3, prefix=len(prefix), row_length=528, hidden_size=64, **fixes)
    exact = of_batch(model, batch)
    model.freeze(cuda)
    model.compile_layers()
    for _ in range(2):
        assert_near(of_batch(model, batch.to(cuda)), exact, logits=1e-3, gradients=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_kernels_of_an_8b_model_s_heads_have_the_dense_mask_s_output_and_gradients(heads: int) -> None:
    cuda, length = torch.device("cuda"), 1040
    log = Log.of([[([5, 6, 7, 8], 1) for _ in range(n)] for n in (length // 6 - 3, length // 9)])
    batch = log.batch(20, 60, row_length=length, min_history=20).to(cuda)
    model = small_model("dti", 20, row_length=length).to(cuda)
    spans = intervals(batch.tokens, "dti", 20)
    masks = TextMasks(*batch.token.shape, cuda, False, heads=heads)
    mask = masks.build(spans)
    options = kernel_options(cuda, torch.bfloat16, 128)
    view = View(block_mask=mask, texts=masks.keys, options=options,
                sums=model._sum_rows(batch, spans, model.embed(batch)))  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    given = [
        torch.randn(*batch.token.shape, count, 128, generator=draw).to(cuda, torch.bfloat16) for count in (8, 2, 2)
    ]
    direction = torch.randn(given[0].shape, generator=draw).to(cuda, torch.bfloat16)
    seen = visible(batch.tokens, "dti", 20)[:, None]
    # Tokens first, then heads, as a layer makes them; the dense mask's are in fp32.
    given, direction = [x.transpose(1, 2) for x in given], direction.transpose(1, 2)
    exact = partial(scaled_dot_product_attention, attn_mask=seen, enable_gqa=True)
    results = (
        with_gradients(attended(view), given, direction),
        with_gradients(exact, [x.float() for x in given], direction),
    )
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= 0.02 * expected.norm()
