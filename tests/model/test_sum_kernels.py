"""The fused kernels of the [SUM] rows are the plain form, forward and backward, whatever a batch looks like.

Without a GPU Triton's interpreter runs them, where it is asked to (CONTRIBUTING.md); at small shapes, as it is slow.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.modeling.attention.sums.blocked import blocked_sum_attention
from dti_pipeline.modeling.attention.sums.naive import naive_sum_attention
from dti_pipeline.modeling.attention.sums.rows import Initial
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paradigms import DTI, names
from tests.model.architectures import write
from tests.model.conftest import SPECIAL, TOLERANCE, VOCABULARY, Log, k_of, planned, small_model
from tests.model.test_forgetting import CUDA_TOLERANCE, FAMILIES, at_sums, calls_of

INTERPRETED = importlib.util.find_spec("triton") is not None and os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="no Triton, or TRITON_INTERPRET=1 is not set")
DEVICES = [pytest.param("cpu", marks=interpreted), pytest.param("cuda", marks=pytest.mark.gpu)]
PARADIGMS = names()


def fused(*arguments: Any) -> Tensor:
    from dti_pipeline.modeling.attention.sums.fused import fused_sum_attention

    return fused_sum_attention(*arguments)


def arguments_of(model: CTRModel, batch: Any) -> tuple[Tensor, list[Any]]:
    """What entered the first layer, and what the second asks of the [SUM] rows' attention."""
    embedded, calls, sums = calls_of(model, batch)
    module, query, key, value, scale, layer = calls[1]
    query, key = at_sums(query, key, sums, layer)
    return embedded, [module, query, key, value, sums, scale, layer]


def direction_of(like: Tensor) -> Tensor:
    """A fixed one, which points at filling too."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like) / like.numel() ** 0.5


def outcome(form: Any, arguments: list[Any], wanted: list[Tensor]) -> list[Tensor]:
    """Output on real [SUM]s, and the gradients of ``wanted``."""
    out = form(*arguments)
    assert out.isfinite().all()
    gradients = torch.autograd.grad((out * direction_of(out)).sum(), wanted, retain_graph=True, allow_unused=True)
    valid = arguments[4].valid[:, None, :, None]
    return [out * valid, *(torch.zeros((), device=out.device) if x is None else x for x in gradients)]


def assert_same(model: CTRModel, batch: Any, device: str) -> None:
    """The kernels' outcome is that of the portable and of the plain form."""
    model.place(model.make_plan(torch.device(device)))
    embedded, arguments = arguments_of(model, batch.to(torch.device(device)))
    wanted = [embedded, *(p for name, p in model.lm.named_parameters() if "layers" in name)]
    found, portable = (outcome(form, arguments, wanted) for form in (fused, blocked_sum_attention))
    assert len(found) > 10
    plain = naive_sum_attention(*arguments)
    for one, other in zip([*found, found[0]], [*portable, plain], strict=True):
        if device == "cpu":
            torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=1e-4)
        else:
            assert (one - other).norm() <= CUDA_TOLERANCE[torch.float32] * other.norm() + TOLERANCE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
@pytest.mark.parametrize("paradigm", PARADIGMS)
@pytest.mark.parametrize("position", ["rope", "rope_alibi", "nope_alibi"])
def test_kernels_are_the_plain_form(position: str, paradigm: str, prefix: tuple[int, ...], device: str) -> None:
    log = Log.random(users=5, seed=5, shortest=6, prefix=prefix)
    batch = log.batch(3, k_of(paradigm), row_length=100)
    assert 1 < len(batch.token) < 10
    for family in ("none", "linear"):
        model = small_model(paradigm, 3, prefix=len(prefix), sum_position=position, forgetting=family)
        assert_same(model, batch, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("most", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_every_family(family: str, most: float, device: str) -> None:
    model = small_model("dti", 4, sum_position="nope_alibi", forgetting=family, forgetting_max=most)
    assert_same(model, Log.random(users=2, seed=7, shortest=8).batch(4, None, row_length=90), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "hidden_size"),
    [(1, 1, 20), (3, 1, 96), (7, 1, 56), (8, 1, 128), (4, 4, 128), (4, 2, 96)],
)
def test_of_any_heads(heads: int, kv_heads: int, hidden_size: int, device: str) -> None:
    """Groups and widths that are no power of two, too."""
    model = small_model("dti", 3, sum_position="nope_alibi", forgetting="linear",
                        heads=heads, kv_heads=kv_heads, hidden_size=hidden_size)  # fmt: skip
    assert_same(model, Log.random(users=2, seed=7).batch(3, 4, row_length=70), device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("row_length", [64, 97, 250])
def test_of_rows_with_few_and_no_sums(row_length: int, device: str) -> None:
    """One row has far fewer [SUM]s than others, one has none; and others more than a tile holds."""
    batch = Log.random(users=9, seed=1, shortest=1, longest=20, text=1).batch(2, None, row_length=row_length)
    assert batch.sum_slot.shape[1] > 16
    kept = batch.sum_valid.clone()
    kept[0, 2:] = False
    kept[-1] = False
    slot = torch.where(kept, batch.sum_slot, batch.sum_slot.gather(1, (kept.sum(1, keepdim=True) - 1).clamp(min=0)))
    batch = dataclasses.replace(batch, sum_valid=kept, sum_slot=slot)
    for family in ("none", "linear"):
        assert_same(small_model("dti", 2, sum_position="rope_alibi", forgetting=family), batch, device)


@interpreted
def test_what_is_forgotten_completely_has_no_gradient() -> None:
    n = 2
    model = small_model("dti", n, forgetting="linear", forgetting_max=1.0, initial_std=0.1)
    batch = Log.random(users=2, seed=3, shortest=8).batch(n, None, row_length=128)
    _, arguments = arguments_of(model, batch)
    sums = arguments[4]
    arguments[2], arguments[3] = (x.detach().requires_grad_() for x in arguments[2:4])
    last = int(sums.valid[0].sum()) - 1
    back = batch.interaction[0, sums.slot[0, last]] - batch.interaction[0]
    for gradient in torch.autograd.grad(fused(*arguments)[0, :, last].sum(), arguments[2:4]):
        touched = gradient[0].abs().sum((0, 2)) > 0
        assert not touched[back >= n].any()
        assert touched.any()


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every kernel that is run, by name."""
    from dti_pipeline.modeling.attention.sums import fused as sum_fused

    names: list[str] = []
    launch = sum_fused.launch

    def counted(name: str, *others: Any) -> None:
        names.append(name)
        launch(name, *others)

    monkeypatch.setattr(sum_fused, "launch", counted)
    return names


def logits_and_gradients(model: CTRModel, batch: Any) -> list[Tensor]:
    model.zero_grad()
    logits = model(batch)
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.trained().values() if p.grad is not None)]


@interpreted
@pytest.mark.parametrize("fixes", [{}, {"sum_position": "nope_alibi"}, {"forgetting": "linear"}], ids=str)
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_a_model_that_is_given_the_kernels_is_the_same(
    fixes: dict[str, str], backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under any rule, also in the last layer alone, where only [SUM] rows are computed. Compiled without a break."""
    torch._dynamo.reset()
    model = small_model("dti", 3, **fixes)
    batch = Log.random(users=3, seed=5, shortest=8).batch(3, 4, row_length=80)
    expected = logits_and_gradients(model, batch)
    planned(model, sum_kernel=True, attention_kernel=True)
    names = launches(monkeypatch)
    if backend:
        for layer in decoder_of(model.lm).layers:
            layer.compile(dynamic=False, fullgraph=True, backend=backend)
    found = logits_and_gradients(model, batch)
    layers = 2 if fixes else 1
    assert sorted(names) == ["forward"] * layers + ["keys"] * layers + ["queries"] * layers
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=1e-4)
    torch._dynamo.reset()


@interpreted
@pytest.mark.parametrize("forgetting", ["none", "linear"])
def test_states_with_biases_are_mixed_without_the_kernels(
    tmp_path: Path, forgetting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraConfig(rank=0)
    config = ModelConfig(
        name_or_path=write(tmp_path, "qwen2"), lora=lora, forgetting=forgetting, sum_position="rope_alibi"
    )
    model = CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL)
    planned(model, sum_kernel=model.make_plan(torch.device("cuda")).sum_kernel.on)
    names = launches(monkeypatch)
    with torch.no_grad():
        model(Log.random(users=2, seed=5).batch(3, 4, row_length=64))
    assert names == ([] if forgetting == "linear" else ["forward", "forward"])


def on_cuda(dtype: torch.dtype, family: str, width: int) -> tuple[list[Tensor], list[Any]]:
    """Leaves, and what attention is asked, of more [SUM]s than a tile holds."""
    model = small_model("dti", 4, forgetting=family, sum_position="nope_alibi", hidden_size=4 * width).to("cuda", dtype)
    model.slopes = model.slopes.float()
    batch = Log.random(users=12, seed=7, shortest=10, longest=20).batch(4, 6, row_length=512)
    embedded, (module, *states, sums, scale, memory) = arguments_of(model, batch.to(torch.device("cuda")))
    *states, hidden, initial = (x.detach().clone().requires_grad_() for x in (*states, memory.hidden, embedded))
    leaves = states
    if family != "none":
        sums, leaves = dataclasses.replace(sums, initial=Initial(initial)), [*states, hidden, initial]
    return leaves, [module, *states, sums, scale, dataclasses.replace(memory, hidden=hidden)]


@pytest.mark.gpu
@pytest.mark.parametrize("width", [16, 128])
@pytest.mark.parametrize("family", ["none", "linear"])
@pytest.mark.parametrize("dtype", CUDA_TOLERANCE, ids=["fp32", "bf16"])
def test_on_cuda_compiled_kernels_are_the_portable_form(dtype: torch.dtype, family: str, width: int) -> None:
    """Relative to the norm of each output and gradient; and the same to the last bit when asked again."""
    leaves, arguments = on_cuda(dtype, family, width)
    form = torch.compile(fused, dynamic=False, fullgraph=True)
    found, again, expected = (outcome(f, arguments, leaves) for f in (form, form, blocked_sum_attention))
    for one, two, other in zip(found, again, expected, strict=True):
        assert torch.equal(one, two)
        assert (one - other).float().norm() <= CUDA_TOLERANCE[dtype] * other.float().norm()


@pytest.mark.gpu
def test_on_cuda_kernels_can_be_recorded() -> None:
    """A CUDA graph refuses what waits for the device; replayed, it reads what stands in its inputs then."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        leaves, arguments = on_cuda(torch.bfloat16, "linear", 16)
        before = outcome(fused, arguments, leaves)  # what is compiled when first used is compiled now
        direction = direction_of(before[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = fused(*arguments)
            gradients = torch.autograd.grad((out * direction).sum(), leaves)
        with torch.no_grad():
            leaves[0].mul_(2)
        graph.replay()
        found = [out.detach() * arguments[4].valid[:, None, :, None], *gradients]
        for one, other in zip(found, outcome(fused, arguments, leaves), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(found[0], before[0])


@pytest.mark.gpu
def test_on_cuda_a_model_has_the_kernels_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    names = launches(monkeypatch)
    model = small_model("dti", 3, hidden_size=64, sum_position="nope_alibi", forgetting="linear")
    batch = Log.random(users=3, seed=5, shortest=8).batch(3, 4, row_length=128)
    exact = logits_and_gradients(model, batch)
    assert not names
    model.place(model.make_plan(torch.device("cuda")))
    found = logits_and_gradients(model, batch.to(torch.device("cuda")))
    assert sorted(names) == ["forward", "forward", "keys", "keys", "queries", "queries"]
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.cpu(), other, atol=1e-3, rtol=1e-3)
