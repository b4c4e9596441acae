"""Keys reordered with [SUM]s last: attention, gradients and the whole model stay what they are."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import pad, scaled_dot_product_attention

from dti_pipeline.modeling.attention import backends
from dti_pipeline.modeling.attention.backends import ReorderedFlex, kernel_options
from dti_pipeline.modeling.masks.blocks import BlockMasks
from dti_pipeline.modeling.masks.reordered_blocks import ReorderedBlockMasks
from dti_pipeline.modeling.masks.visibility import intervals, visible
from dti_pipeline.modeling.network import execution
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import DTI, named, names
from tests.model.conftest import RULES, TOLERANCE, Log, filled, histories, k_of, placed, planned, small_model, sums_of
from tests.model.flex import attended, flex_on_a_cpu, outcome, pairs_of_blocks, plain_flex, with_gradients
from tests.model.test_precision import assert_near
from tests.model.test_precision import outcome as of_batch

CPU, LENGTH = torch.device("cpu"), 200
logs = st.builds(Log.random, prefix=st.sampled_from([(), (9, 8, 7)]), **histories)
HEADS = pytest.mark.parametrize("heads", [1, 2], ids=["head by head", "GQA packing"])


@pytest.mark.parametrize("paradigm", names())
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]), size=st.sampled_from([8, 32, 96]),
       heads=st.sampled_from([1, 4]))  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_each_query_sees_the_same_keys_in_their_new_places(
    paradigm: str, log: Log, n: int, k: int | None, size: int, heads: int
) -> None:
    """But for a [SUM], which does not see itself; and nobody sees what fills up the last block, nor does that see
    anybody. By pairs and by blocks."""
    batch = log.batch(n, k, row_length=LENGTH)
    spans = intervals(batch.tokens, named(paradigm), n)
    masks = ReorderedBlockMasks(*batch.token.shape, CPU, len(log.store.prefix) > 0, block_size=size, heads=heads)
    mask = masks.build(spans)
    is_sum = batch.kind == Kind.SUM
    order, place = masks.keys[0][:, :LENGTH], masks.keys[1]
    assert torch.equal(order.sort().values, torch.arange(LENGTH).expand_as(order))
    assert torch.equal(order.gather(1, place), torch.arange(LENGTH).expand_as(order))
    assert torch.equal(is_sum.gather(1, order), is_sum.int().sort().values.bool()), "[SUM]s are behind all others"
    expected = visible(batch.tokens, named(paradigm), n) & ~(is_sum[:, :, None] & torch.eye(LENGTH, dtype=torch.bool))
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
    spans = intervals(batch.tokens, DTI, 20)
    kinds = (kind(*batch.token.shape, CPU, False, block_size=8) for kind in (BlockMasks, ReorderedBlockMasks))
    in_order, reordered = (int(masks.build(spans).full_kv_num_blocks.sum()) for masks in kinds)
    assert reordered > 3 * in_order


@HEADS
@pytest.mark.parametrize("paradigm", names())
@given(log=logs, n=st.integers(0, 6), seed=st.integers(0, 100))
@settings(max_examples=6, deadline=None)
def test_attention_and_its_gradients_are_the_dense_mask_s(
    paradigm: str, heads: int, log: Log, n: int, seed: int
) -> None:
    """Of rows padded with repeated targets, and of one without any."""
    batch = filled(log, log.rows(n, k_of(paradigm), LENGTH))
    model = small_model(paradigm, n, prefix=len(log.store.prefix))
    spans = intervals(batch.tokens, named(paradigm), n)
    masks = ReorderedBlockMasks(*batch.token.shape, CPU, len(log.store.prefix) > 0, block_size=64, heads=heads)
    sums = sums_of(model, batch)
    assert not sums.have_own_rule
    backend = ReorderedFlex(masks.build(spans), {}, masks.keys, sums)
    draw = torch.Generator().manual_seed(seed)
    given = [torch.randn(len(batch.token), count, LENGTH, 16, generator=draw) for count in (4, 2, 2)]
    direction = torch.randn(given[0].shape, generator=draw)
    dense = visible(batch.tokens, named(paradigm), n)[:, None]
    expected = with_gradients(partial(scaled_dot_product_attention, attn_mask=dense, enable_gqa=True), given, direction)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "compiled_flex_attention", lambda: plain_flex)
        found = with_gradients(attended(backend), given, direction)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("reordered", [False, True], ids=["in order", "reordered"])
@RULES
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
@pytest.mark.parametrize("paradigm", names())
def test_a_model_has_the_same_gradients(
    paradigm: str, prefix: tuple[int, ...], fixes: dict[str, str], reordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log.random(users=5, seed=5, shortest=6, prefix=prefix)
    batch = filled(log, log.rows(3, k_of(paradigm), LENGTH))
    model = small_model(paradigm, 3, prefix=len(prefix), initial_std=0.1, **fixes)
    expected = outcome(model, batch)
    flex_on_a_cpu(monkeypatch, reordered, heads=2)
    found = outcome(planned(model, reordered_keys=reordered), batch)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)
    assert min(float(gradient.norm()) for gradient in expected[1].values()) > 1e-6


@RULES
def test_layers_are_two_graphs_without_a_break(fixes: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last are one, forward and backward."""
    torch._dynamo.reset()
    flex_on_a_cpu(monkeypatch, reordered=True, heads=2)
    log = Log.random(users=5, seed=5, shortest=6)
    batch = filled(log, log.rows(3, 4, LENGTH))
    model = planned(small_model("dti", 3, layers=4, initial_std=0.1, **fixes), reordered_keys=True)
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
@pytest.mark.parametrize("paradigm", names())
def test_a_compiled_model_with_reordered_keys_is_the_cpu_s(
    paradigm: str, prefix: tuple[int, ...], fixes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "WIDE", 1)  # planned as a wide model
    cuda = torch.device("cuda")
    log = Log.random(users=12, seed=7, shortest=6, longest=20, prefix=prefix)
    batch = log.batch(4, k_of(paradigm), row_length=528)
    model = small_model(paradigm, 4, layers=3, prefix=len(prefix), row_length=528, hidden_size=64, **fixes)
    exact = of_batch(model, batch)
    placed(model)
    assert model.plan.reordered_keys
    for _ in range(2):
        assert_near(of_batch(model, batch.to(cuda)), exact, logits=1e-3, gradients=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_kernels_of_an_8b_model_s_heads_have_the_dense_mask_s_output_and_gradients(heads: int) -> None:
    cuda, length = torch.device("cuda"), 1040
    log = Log.of([[([5, 6, 7, 8], 1) for _ in range(n)] for n in (length // 6 - 3, length // 9)])
    batch = log.batch(20, 60, row_length=length, min_history=20).to(cuda)
    model = placed(small_model("dti", 20, row_length=length))
    spans = intervals(batch.tokens, DTI, 20)
    masks = ReorderedBlockMasks(*batch.token.shape, cuda, False, heads=heads)
    options = kernel_options(cuda, torch.bfloat16, 128)
    backend = ReorderedFlex(masks.build(spans), options, masks.keys, sums_of(model, batch))
    draw = torch.Generator().manual_seed(0)
    given = [
        torch.randn(*batch.token.shape, count, 128, generator=draw).to(cuda, torch.bfloat16) for count in (8, 2, 2)
    ]
    direction = torch.randn(given[0].shape, generator=draw).to(cuda, torch.bfloat16)
    seen = visible(batch.tokens, DTI, 20)[:, None]
    # Tokens first, then heads, as a layer makes them; the dense mask's are in fp32.
    given, direction = [x.transpose(1, 2) for x in given], direction.transpose(1, 2)
    exact = partial(scaled_dot_product_attention, attn_mask=seen, enable_gqa=True)
    results = (
        with_gradients(attended(backend), given, direction),
        with_gradients(exact, [x.float() for x in given], direction),
    )
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= 0.02 * expected.norm()
