"""Proof 4: bands and kernels compute attention under the dense mask, for every paradigm, forward and backward.

Bands on a CPU, in fp32 within 1e-5. Kernels on CUDA (marker ``gpu``), or in Triton's interpreter where it is asked for
(CONTRIBUTING.md). On CUDA also the whole model as it is trained, against the CPU's bands in fp32. Tolerances there,
relative to the largest value: fp32 1e-4 for logits and for every gradient; bf16 autocast 0.05 for logits and 0.1 for
gradients (bf16 has 8 bits: one part in 256 a product, and two layers of them). A parameter's gradient is measured by
its own norm, or by a twentieth of the whole gradient's where that is more: a small one is what is left of terms that
cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, scaled_dot_product_attention

from dti_pipeline.modeling.attention.backends import Banded, Fused
from dti_pipeline.modeling.attention.interface import Backend
from dti_pipeline.modeling.masks.visibility import intervals, last_readers, visible
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import DTI, named, names
from tests.model.conftest import RULES, TOLERANCE, Log, filled, histories, k_of, planned, small_model, user_texts
from tests.model.test_sum_kernels import DEVICES, interpreted

LENGTH = 256
logs = st.builds(Log.random, prefix=st.sampled_from([(), (9, 8, 7)]), user=user_texts, **histories)
#: Heads of queries, of keys, and their width: as many of both, groups of three, of seven, and widths that are padded.
HEADS = [(2, 2, 16), (3, 1, 32), (7, 1, 24), (4, 2, 80)]


def attended(backend: Backend) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A function of queries, keys and values (B, H, L, D): what ``backend`` makes of them."""
    return lambda query, key, value: backend.attend(nn.Identity(), query, key, value, query.shape[-1] ** -0.5, None)


def under(mask: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The same under a dense mask (B, L, L)."""
    return partial(scaled_dot_product_attention, attn_mask=mask[:, None], enable_gqa=True)


def with_gradients(attend: Callable[..., Tensor], given: Sequence[Tensor], direction: Tensor) -> list[Tensor]:
    """What ``attend`` makes of queries, keys and values, and their gradients along ``direction``; in fp32."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    out = attend(*leaves)
    return [x.float() for x in (out.detach(), *torch.autograd.grad((out * direction).sum(), leaves))]


def drawn(batch: Batch, queries: int, keys: int, width: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values as a layer makes them, tokens first and then heads; and a direction."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(*batch.token.shape, heads, width) for heads in (queries, keys, keys, queries)]
    query, key, value, direction = (
        torch.randn(shape, generator=draw).to(batch.token.device).transpose(1, 2) for shape in shapes
    )
    return [query, key, value], direction


@pytest.mark.parametrize("paradigm", names())
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]), seed=st.integers(0, 100))
@settings(max_examples=8, deadline=None)
def test_bands_are_the_dense_mask(paradigm: str, log: Log, n: int, k: int | None, seed: int) -> None:
    batch = log.batch(n, k, row_length=LENGTH)
    given, direction = drawn(batch, 4, 2, 16, seed)
    expected = with_gradients(under(visible(batch.tokens, named(paradigm), n)), given, direction)
    banded = attended(Banded.of(intervals(batch.tokens, named(paradigm), n)))
    torch.testing.assert_close(with_gradients(banded, given, direction), expected, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("paradigm", names())
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]))
@settings(max_examples=12, deadline=None)
def test_the_last_reader_of_a_key_is_the_last_that_sees_it(paradigm: str, log: Log, n: int, k: int | None) -> None:
    """Of a [SUM], which only itself sees, the last that would."""
    batch = log.batch(n, k, row_length=LENGTH)
    spans = intervals(batch.tokens, named(paradigm), n)
    # As if all that lies between a context and its interaction were seen too.
    as_text = spans._replace(seen=spans.own, known=spans.own, kind=torch.zeros_like(spans.kind))
    slot = torch.arange(LENGTH).expand_as(batch.token)
    seen = as_text.sees(slot[:, :, None], slot[:, None, :])
    last = torch.where(seen, slot[:, :, None], -1).amax(1)
    assert torch.equal(last_readers(spans, log.store.longest_opening > 0), last)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
@pytest.mark.parametrize("paradigm", names())
def test_kernels_are_the_dense_mask(
    paradigm: str, prefix: tuple[int, ...], heads: tuple[int, int, int], device: str
) -> None:
    """On a CPU's bytes to 1e-5. On a GPU in fp32, and in bf16 as far as that goes; the same bits each time."""
    cuda = device == "cuda"
    for n, k, late in ((3, k_of(paradigm), ""), (9, 1, ""), (3, k_of(paradigm), "shown"), (9, 1, "known")):
        log = Log.random(users=20 if cuda else 4, seed=5, shortest=6, prefix=prefix, late=late)
        batch = log.batch(n, k, row_length=400 if cuda else 90).to(torch.device(device))
        given, direction = drawn(batch, *heads)
        expected = with_gradients(under(visible(batch.tokens, named(paradigm), n)), given, direction)
        fused = attended(Fused.of(intervals(batch.tokens, named(paradigm), n), bool(prefix), batch.late))
        found = with_gradients(fused, given, direction)
        if not cuda:
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)
            continue
        assert_close_in_norm(found, expected, 1e-4)
        rounded, along = [x.bfloat16() for x in given], direction.bfloat16()
        one, other = (with_gradients(fused, rounded, along) for _ in range(2))
        assert_close_in_norm(one, expected, 0.02)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def assert_close_in_norm(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


@interpreted
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]), paradigm=st.sampled_from(names()),
       heads=st.sampled_from(HEADS[1:3]), seed=st.integers(0, 100))  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_kernels_are_the_dense_mask_of_any_log(
    paradigm: str, log: Log, n: int, k: int | None, heads: tuple[int, int, int], seed: int
) -> None:
    batch = log.batch(n, k, row_length=96 + seed % 3)
    given, direction = drawn(batch, *heads, seed)
    expected = with_gradients(under(visible(batch.tokens, named(paradigm), n)), given, direction)
    fused = attended(Fused.of(intervals(batch.tokens, named(paradigm), n), log.store.longest_opening > 0, batch.late))
    torch.testing.assert_close(with_gradients(fused, given, direction), expected, atol=TOLERANCE, rtol=1e-4)


@interpreted
@RULES
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
@pytest.mark.parametrize("paradigm", names())
def test_a_model_has_the_same_gradients(paradigm: str, prefix: tuple[int, ...], fixes: dict[str, str]) -> None:
    log = Log.random(users=3, seed=5, shortest=6, prefix=prefix, late="shown")
    batch = filled(log, log.rows(3, k_of(paradigm), 90))
    model = small_model(paradigm, 3, prefix=len(prefix), initial_std=0.1, **fixes)
    expected = outcome(model, batch)
    assert int((batch.kind == Kind.SUM).sum()) > 1
    found = outcome(planned(model, attention_kernel=True), batch)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)
    assert min(float(gradient.norm()) for gradient in expected[1].values()) > 1e-6


def outcome(model: CTRModel, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of targets that count, and gradients."""
    model.zero_grad()
    logits = model(batch)
    logits = logits[batch.weight.bool()]
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.trained().items() if p.grad is not None}


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [(32, 8, 128), (9, 3, 64), (4, 1, 256)], ids=str)
def test_kernels_of_known_models_heads_are_the_dense_mask(heads: tuple[int, int, int]) -> None:
    """In bf16, over windows of several tiles."""
    length = 1040
    log = Log.of([[([5, 6, 7, 8], 1) for _ in range(n)] for n in (length // 6 - 3, length // 9)])
    batch = log.batch(20, 60, row_length=length, min_history=20).to(torch.device("cuda"))
    given, direction = drawn(batch, *heads)
    expected = with_gradients(under(visible(batch.tokens, DTI, 20)), given, direction)
    fused = attended(Fused.of(intervals(batch.tokens, DTI, 20), False, False))
    assert_close_in_norm(with_gradients(fused, [x.bfloat16() for x in given], direction.bfloat16()), expected, 0.02)


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
