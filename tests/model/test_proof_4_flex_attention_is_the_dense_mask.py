"""Proof 4: FlexAttention with our block masks computes attention under the dense mask, for every paradigm.

On the CPU: forward, fp32, uncompiled, within 1e-5. On CUDA (marker ``gpu``): the whole model as it is trained, forward
and backward, against the CPU's dense path in fp32. Tolerances there, relative to the largest value: fp32 1e-4 for
logits and for every gradient; bf16 autocast 0.05 for logits and 0.1 for gradients (bf16 has 8 bits: one part in 256 a
product, and two layers of them). A parameter's gradient is measured by its own norm, or by a twentieth of the whole
gradient's where that is more: a small one is what is left of terms that cancel.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import binary_cross_entropy_with_logits, scaled_dot_product_attention

from dti_pipeline.modeling.attention import backends
from dti_pipeline.modeling.attention.backends import (
    HOPPER,
    TRITON,
    Banded,
    Flex,
    gqa_packing,
    kernel_options,
)
from dti_pipeline.modeling.masks.blocks import BlockMasks
from dti_pipeline.modeling.masks.visibility import Tokens, intervals, visible
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paradigms import DTI, SLIDING_WINDOW, named, names
from tests.model.conftest import TOLERANCE, Log, histories, small_model
from tests.model.flex import attended, with_gradients

# Uncompiled it computes the same, slowly: that is what this file compares.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")

LENGTH = 256
logs = st.builds(Log.random, prefix=st.sampled_from([(), (9, 8, 7)]), **histories)


def random_heads(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries of four heads, keys and values of two."""
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, heads, LENGTH, 16, generator=draw) for heads in (4, 2, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("paradigm", names())
@pytest.mark.parametrize("heads", [1, 2], ids=["head by head", "GQA packing"])
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]), seed=st.integers(0, 100))
@settings(max_examples=8, deadline=None)
def test_both_fast_forms_equal_the_dense_mask_on_the_cpu(
    paradigm: str, heads: int, log: Log, n: int, k: int | None, seed: int
) -> None:
    batch = log.batch(n, k, row_length=LENGTH)
    query, key, value = random_heads(len(batch.token), seed)
    dense = visible(batch.tokens, named(paradigm), n)[:, None]
    expected = scaled_dot_product_attention(query, key, value, attn_mask=dense, enable_gqa=True)
    spans = intervals(batch.tokens, named(paradigm), n)
    banded = attended(Banded.of(spans))(query, key, value)
    torch.testing.assert_close(banded, expected, atol=TOLERANCE, rtol=0)
    # A block smaller than the row, so that whole blocks are skipped and taken without looking.
    masks = BlockMasks(*batch.token.shape, torch.device("cpu"), len(log.store.prefix) > 0, block_size=64, heads=heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "compiled_flex_attention", lambda: flex_attention)
        flex = attended(Flex(masks.build(spans), TRITON))(query, key, value)
    torch.testing.assert_close(flex, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("paradigm", names())
def test_a_block_mask_can_be_built_again_for_the_next_batch(paradigm: str) -> None:
    """Its buffers are overwritten in place: nothing of the batch before may stay."""
    logs = [Log.random(users=3, seed=seed, shortest=8) for seed in (1, 2)]
    batches = [log.batch(3, 4, row_length=LENGTH) for log in logs]
    rows = min(len(b.token) for b in batches)
    masks = BlockMasks(rows, LENGTH, torch.device("cpu"), has_prefix=False, block_size=64)
    query, key, value = random_heads(rows, 0)
    for batch in batches:
        some = Tokens(*(part[:rows] for part in (batch.document, batch.interaction, batch.kind)))
        dense = visible(some, named(paradigm), 3)[:, None]
        expected = scaled_dot_product_attention(query, key, value, attn_mask=dense, enable_gqa=True)
        mask = masks.build(intervals(some, named(paradigm), 3))
        flex = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
        torch.testing.assert_close(flex, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("paradigm", names())
@pytest.mark.parametrize("heads", [1, 4])
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]), size=st.sampled_from([8, 32, 96]))
@settings(max_examples=8, deadline=None)
def test_blocks_are_those_of_the_mask(paradigm: str, heads: int, log: Log, n: int, k: int | None, size: int) -> None:
    """What is visible is looked at, what is full is not evaluated, and hardly a block is looked at for nothing."""
    batch = log.batch(n, k, row_length=LENGTH)
    masks = BlockMasks(*batch.token.shape, torch.device("cpu"), len(log.store.prefix) > 0, block_size=size, heads=heads)
    mask = masks.build(intervals(batch.tokens, named(paradigm), n))
    seen, queries = visible(batch.tokens, named(paradigm), n), size // heads
    seen = torch.nn.functional.pad(seen, (0, -LENGTH % size, 0, -LENGTH % size))
    blocks = seen.unflatten(1, (-1, queries)).unflatten(3, (-1, size))
    some, rows = blocks.any(4).any(2), blocks.all(4)
    rows = rows | ~blocks.any(4)  # rows that only fill the last block
    every = rows.all(2) & some
    partial, full = (_as_matrix(*listed) for listed in (
        (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)))  # fmt: skip
    assert not (some & ~partial & ~full).any()
    assert not (full & ~every).any()
    assert not (full & partial).any()
    keys = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    torchs = BlockMask.from_kv_blocks(*keys, mask.BLOCK_SIZE, mask.mask_mod, mask.seq_lengths)
    for found, expected in zip(mask.as_tuple(), torchs.as_tuple(), strict=True):
        assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found == expected
        # The kernels step through lists as through contiguous memory, whatever their strides: a transposed list is
        # another one to them, and keys would have the gradients of other blocks' queries.
        assert not isinstance(found, torch.Tensor) or found.is_contiguous()
    assert ((partial | full) & ~some).sum() <= 0.1 * some.sum() + 2


def _as_matrix(count: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    taken = torch.arange(indices.shape[-1]) < count[..., None]
    return torch.zeros(indices.shape, dtype=torch.bool).scatter(-1, indices.long(), taken)[:, 0]


def test_as_many_heads_are_together_as_share_their_keys_in_all_layers_and_divide_a_block() -> None:
    def layer(groups: int) -> Any:
        return SimpleNamespace(self_attn=SimpleNamespace(num_key_value_groups=groups))

    assert gqa_packing([layer(4), layer(4)]) == 4
    assert gqa_packing([layer(8), layer(12)]) == 4
    assert gqa_packing([layer(7)]) == 1
    assert gqa_packing([layer(4), SimpleNamespace()]) == 1
    assert gqa_packing(decoder_of(small_model("dti", 3).lm).layers) == 2


def test_a_long_prompt_has_full_blocks_where_no_sum_stands() -> None:
    histories = [[([5, 6, 7, 8], 1) for _ in range(40)]]
    batch = Log.of(histories).batch(39, 1, row_length=LENGTH, min_history=39)
    masks = BlockMasks(*batch.token.shape, torch.device("cpu"), has_prefix=False, block_size=32)
    mask = masks.build(intervals(batch.tokens, SLIDING_WINDOW, 39))
    assert mask.full_kv_num_blocks.sum() == 15, "200 tokens: six whole blocks, below the diagonal"


@pytest.mark.gpu
@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize(
    ("length", "width", "dtype", "tolerance"),
    [
        (512, 16, torch.float32, 1e-4),
        (300, 16, torch.float32, 1e-4),
        (96, 16, torch.float32, 1e-4),
        (512, 128, torch.bfloat16, 0.02),
    ],
    ids=["whole_blocks", "piece_of_a_block", "less_than_a_block", "as_an_8B_model_has_them"],
)
def test_on_cuda_the_kernels_have_the_dense_mask_s_output_and_gradients(
    length: int, width: int, dtype: torch.dtype, tolerance: float, together: int
) -> None:
    """Attention alone, with the package's options, where long contexts have blocks that are taken without looking at
    them; queries, keys and values as a layer makes them: tokens first, then heads. The dense mask's are in fp32."""
    histories = [[([5, 6, 7, 8], 1) for _ in range(n)] for n in (length // 5 - 2, length // 9)]
    log, cuda = Log.of(histories), torch.device("cuda")
    batch = log.batch(length, 2, row_length=length, min_history=length // 9 - 2).to(cuda)
    masks = BlockMasks(*batch.token.shape, cuda, has_prefix=False, heads=together)
    block_mask = masks.build(intervals(batch.tokens, DTI, length))
    assert length < 512 or int(block_mask.full_kv_num_blocks.sum()) > 2
    draw = torch.Generator().manual_seed(0)
    given = [torch.randn(*batch.token.shape, heads, width, generator=draw).to(cuda, dtype) for heads in (4, 2, 2)]
    direction = torch.randn(given[0].shape, generator=draw).to(cuda, dtype)
    flex = Flex(block_mask, kernel_options(cuda, dtype, width))
    seen = visible(batch.tokens, DTI, length)[:, None]
    given, direction = [x.transpose(1, 2) for x in given], direction.transpose(1, 2)
    exact = partial(scaled_dot_product_attention, attn_mask=seen, enable_gqa=True)
    results = (
        with_gradients(attended(flex), given, direction),
        with_gradients(exact, [x.float() for x in given], direction),
    )
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()


def logits_and_gradients(
    model: CTRModel, batch: Batch, autocast: torch.dtype | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    device = batch.token.device.type
    with torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None):
        logits = model(batch)
        loss = binary_cross_entropy_with_logits(logits, batch.label)
    loss.backward()
    # A copy: a gradient moves to the GPU with its parameter.
    gradients = {name: p.grad.float().cpu().clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach().float().cpu(), gradients


@pytest.mark.gpu
@pytest.mark.parametrize("paradigm", names())
@pytest.mark.parametrize("prefix", [(), (9, 8, 7)], ids=["bare", "prefix"])
@pytest.mark.parametrize(
    ("position", "forgetting"), [("rope", "none"), ("rope_alibi", "linear"), ("nope_alibi", "none")]
)
@pytest.mark.parametrize(
    ("dtype", "logit_tolerance", "gradient_tolerance"),
    [(None, 1e-4, 1e-4), (torch.bfloat16, 0.05, 0.1)],
    ids=["fp32", "bf16"],
)
def test_on_cuda_the_model_has_the_cpu_s_logits_and_gradients(
    paradigm: str, prefix: tuple[int, ...], position: str, forgetting: str, dtype: torch.dtype | None,
    logit_tolerance: float, gradient_tolerance: float,
) -> None:  # fmt: skip
    log = Log.random(users=12, seed=7, shortest=6, longest=20, prefix=prefix)
    model = small_model(
        paradigm, 4, prefix=len(prefix), row_length=512, hidden_size=64, initial_std=0.1, sum_position=position,
        forgetting=forgetting,
    )  # fmt: skip
    batch = log.batch(4, 6, row_length=512)
    expected, expected_gradients = logits_and_gradients(model, batch)
    cuda = torch.device("cuda")
    model.place(model.make_plan(cuda, dtype or torch.float32))
    logits, gradients = logits_and_gradients(model, batch.to(cuda), dtype)
    assert (logits - expected).abs().max() <= logit_tolerance * expected.abs().max()
    assert gradients.keys() == expected_gradients.keys()
    size = {name: gradient.norm() for name, gradient in expected_gradients.items()}
    whole = torch.stack(list(size.values())).norm()
    for name, gradient in gradients.items():
        apart = (gradient - expected_gradients[name]).norm()
        assert apart <= gradient_tolerance * max(size[name], 0.05 * whole), name


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "expected"),
    [
        ((9, 0), torch.bfloat16, 128, HOPPER[128]),
        ((9, 0), torch.bfloat16, 32, HOPPER[32]),
        ((9, 0), torch.bfloat16, 64, TRITON),
        ((9, 0), torch.float32, 32, TRITON),
        ((8, 0), torch.bfloat16, 32, TRITON),
    ],
)
def test_kernels_have_options_where_they_were_measured(
    capability: tuple[int, int], dtype: torch.dtype, width: int, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert kernel_options(torch.device("cuda"), dtype, width) is expected
    assert kernel_options(torch.device("cpu"), dtype, width) is TRITON
