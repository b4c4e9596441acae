"""What is computed of a batch's distinct tokens and copied to their places is what all tokens would have given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.modeling.attention.sums import rows as sum_rows
from dti_pipeline.modeling.network import execution
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.speed.distinct import Distinct, sum_by_token
from dti_pipeline.paradigms import DTI
from tests.model.architectures import write
from tests.model.conftest import SPECIAL, TOLERANCE, VOCABULARY, Log, placed, planned, small_model, speaking
from tests.model.test_sum_kernels import interpreted

CUDA = torch.device("cuda")


def draw(rows: int, length: int, vocabulary: int, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


@given(
    rows=st.integers(1, 3), length=st.integers(1, 20), vocabulary=st.integers(1, 12), filling=st.sampled_from([0, 5])
)
@settings(deadline=None)
def test_every_slot_finds_its_token(rows: int, length: int, vocabulary: int, filling: int) -> None:
    token = draw(rows, length, vocabulary)
    ids = token.unique()
    count = len(ids) + filling
    matrix = torch.randn(vocabulary, 3)
    distinct = Distinct.of(token, matrix[token], count)
    assert torch.equal(distinct.state[: len(ids)], matrix[ids])
    assert torch.equal(distinct.to_slots(distinct.state), matrix[token])
    assert distinct.start.shape == (count + 1,)
    for number, (begin, end) in enumerate(zip(distinct.start, distinct.start[1:], strict=False)):
        wanted = (token.flatten() == ids[number]).nonzero()[:, 0] if number < len(ids) else ids[:0]
        assert torch.equal(distinct.order[begin:end], wanted)


def test_a_tokens_gradient_is_the_sum_over_its_slots() -> None:
    token = draw(3, 40, 9)
    x = torch.randn(10, 2, 4, requires_grad=True)
    distinct = Distinct.of(token, torch.zeros(3, 40, 1), 10)
    weight = torch.randn(3, 40, 2, 4)
    found, again, plain = (
        torch.autograd.grad((at_slots * weight).sum(), x)[0]
        for at_slots in (distinct.to_slots(x), distinct.to_slots(x), x[distinct.number])
    )
    assert torch.equal(found, again)
    torch.testing.assert_close(found, plain)
    assert (found[9] == 0).all(), "a token that stands nowhere"


def model_of(folder: Path, kind: str, rank: int, position: str = "rope", **changes: Any) -> CTRModel:
    """A checkpoint that forgets, with norms and biases that say something; adapters of keys and values too."""
    lora = LoraConfig(rank=rank, target_modules=("q_proj", "k_proj", "v_proj"))
    path = write(folder, kind, **changes)
    config = ModelConfig(name_or_path=path, lora=lora, forgetting="linear", sum_position=position)
    torch.manual_seed(2)
    model = speaking(CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL))
    with torch.no_grad():
        for name, parameter in model.lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
            elif name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def outcome(model: CTRModel, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of all that is trained."""
    model.zero_grad()
    logits = model(batch)
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.trained().items() if p.grad is not None}


def projected_rows(model: CTRModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each product of the first layer's values has, as they are made."""
    rows: list[int] = []
    module = decoder_of(model.lm).layers[0].self_attn.v_proj
    forward = module.forward

    def counted(x: Tensor) -> Tensor:
        rows.append(x.shape[:-1].numel())
        return forward(x)

    monkeypatch.setattr(module, "forward", counted)
    return rows


@pytest.mark.parametrize("filled", [False, True], ids=["as many", "filled"])
@pytest.mark.parametrize("position", ["rope", "nope_alibi"])
@pytest.mark.parametrize(
    ("kind", "rank"),
    [(kind, rank) for kind in ("llama", "qwen2", "gemma") for rank in (4, 0)],
)
def test_a_model_is_the_same(
    tmp_path: Path, kind: str, rank: int, position: str, filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With biases (qwen2) and scaled embeddings (gemma); trained as a whole, and by adapters and the embeddings of a
    few tokens. As on a GPU, there may be more rows than tokens. (What norms its keys is refused: see the probe.)"""
    model = model_of(tmp_path, kind, rank, position)
    batch = Log.random(users=5, seed=5, shortest=6).batch(3, 4, row_length=128)
    assert len(batch.token) > 1
    assert (batch.token == SPECIAL["pad"]).any()
    if filled:
        monkeypatch.setattr(sum_rows, "TOKENS", 64)
        batch = dataclasses.replace(batch, host=batch)  # as that of a GPU
    rows = projected_rows(model, monkeypatch)
    found = outcome(model, batch)
    assert rows == [batch.token.numel(), 64 if filled else len(batch.token.unique())]
    batch = dataclasses.replace(batch, host=None)
    expected = outcome(planned(model, distinct_tokens=False), batch)
    assert rows[2:] == [batch.token.numel()] * 2
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)
    # A bias of all keys alike moves no softmax: without positions it has no gradient.
    assert min(float(g.norm()) for name, g in expected[1].items() if not name.endswith("k_proj.bias")) > 1e-5


def test_a_compiled_model_is_the_same(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = model_of(tmp_path, "llama", 4)
    batch = Log.random(users=3, seed=5, shortest=6).batch(3, 4, row_length=128)
    expected = outcome(model, batch)
    for layer in decoder_of(model.lm).layers:
        layer.compile(dynamic=False, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outcome(model, batch), expected, atol=TOLERANCE, rtol=1e-4)
    torch._dynamo.reset()


@interpreted
def test_what_is_given_to_the_sum_rows_kernels_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tmp_path, "llama", 4)
    batch = Log.random(users=3, seed=5, shortest=6).batch(3, 4, row_length=128)
    expected = outcome(model, batch)
    found = outcome(planned(model, sum_kernel=True), batch)
    torch.testing.assert_close(found[0], expected[0], atol=TOLERANCE, rtol=1e-4)
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_only_where_it_is_a_function_of_the_token_and_saves_time(tmp_path: Path) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert not small_model("dti", 3, forgetting="linear").plan.distinct_tokens
    model = model_of(tmp_path, "llama", 0)
    assert model.plan.distinct_tokens
    assert not model.make_plan(cuda).distinct_tokens, "a small model there is launch-bound"
    model.pooled = True
    assert not model.make_plan(cpu).distinct_tokens


def test_shapes_grow_in_few_steps_and_never_shrink(tmp_path: Path) -> None:
    """On a GPU each new one is a compilation."""
    model = model_of(tmp_path, "llama", 4)
    batch = Log.random(users=3, seed=5).batch(3, 4, row_length=2048)
    sizes = []
    for vocabulary in (600, 100, 1000, 1500):
        batch.token.copy_(draw(*batch.token.shape, vocabulary))
        sizes.append(model.attention.sizes(batch, DTI).tokens)
    assert sizes == [768, 768, 1024, 1280]


def assert_kernel_sums(device: str, dtype: torch.dtype, width: int, runs: list[int]) -> None:
    """Of tokens that stand in so many slots each, anywhere."""
    from dti_pipeline.modeling.speed.distinct_kernel import launch

    token = torch.arange(len(runs)).repeat_interleave(torch.tensor(runs))
    token = token[torch.randperm(len(token), generator=torch.Generator().manual_seed(2))][None]
    distinct = Distinct.of(token, torch.zeros(*token.shape, 1), len(runs) + 3)
    # Eighths: their sums are exact in fp32, in any order, and in no other precision that is smaller.
    rows = (torch.randint(-8, 9, (token.numel(), width), generator=torch.Generator().manual_seed(1)) / 8).to(dtype)
    given = [x.to(device) for x in (rows, distinct.number.flatten(), distinct.order, distinct.start)]
    out = torch.full((len(runs) + 3, width), float("nan"), dtype=dtype, device=device)
    launch(*given, out)
    exact = torch.zeros(out.shape, dtype=torch.float64).index_add(0, distinct.number[0], rows.double())
    assert torch.equal(out.cpu(), exact.to(dtype))
    assert torch.equal(sum_by_token(*given), out) or device == "cpu"
    assert torch.equal(sum_by_token(*(x.cpu() for x in given)), exact.to(dtype))


@pytest.mark.parametrize(
    "runs",
    [
        [1, 2, 3, 40, 1, 1, 5, 700, 9, 30, 2],
        [32, 32, 64, 31, 1, 33],
        [1] * 40,
        [5],
        [31, 2, 31, 1, 32, 96],
    ],
    ids=["mixed", "whole blocks", "one slot each", "one token", "over the edges"],
)
@pytest.mark.parametrize("width", [16, 128, 200])
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        pytest.param("cpu", torch.float32, marks=interpreted),  # Triton's interpreter multiplies no bfloat16
        pytest.param("cuda", torch.float32, marks=pytest.mark.gpu),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
def test_the_kernel_adds_up_each_tokens_rows(device: str, width: int, dtype: torch.dtype, runs: list[int]) -> None:
    """Tokens in one slot, in a few, in many blocks of them, and in none."""
    assert_kernel_sums(device, dtype, width, runs)


@pytest.mark.gpu
def test_on_cuda_nothing_waits_and_everything_can_be_recorded() -> None:
    """A CUDA graph, replayed, reads what stands in its inputs then."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        token, matrix = draw(2, 300, 50).to(CUDA), torch.randn(50, 256, device=CUDA)
        weight = torch.randn(2, 300, 256, device=CUDA)
        x = torch.randn(64, 256, device=CUDA, requires_grad=True)

    def run() -> list[Tensor]:
        distinct = Distinct.of(token, matrix[token], 64)
        out = distinct.to_slots(distinct.state + x)
        return [out, *torch.autograd.grad((out * weight).sum(), x)]

    with torch.cuda.stream(stream):
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            found = run()
        token.copy_(draw(2, 300, 30, seed=1))
        graph.replay()
        for one, other in zip(found, run(), strict=True):
            assert torch.equal(one, other)
    torch.cuda.synchronize()
    exact = torch.zeros(50, 256, dtype=torch.float64, device=CUDA)
    exact = exact.index_add(0, token.flatten(), weight.double().flatten(0, 1))[token.unique()]
    torch.testing.assert_close(found[1][: len(exact)], exact.float(), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("rank", [4, 0], ids=["lora", "full"])
def test_on_cuda_a_wide_model_is_that_of_the_cpu(
    tmp_path: Path, kind: str, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled, with its kernels; and the same to the last bit when asked again."""
    model = model_of(tmp_path, kind, rank, "nope_alibi", hidden_size=64, intermediate_size=96, head_dim=16)
    monkeypatch.setattr(execution, "WIDE", 1)
    batch = Log.random(users=3, seed=5, shortest=8).batch(3, 4, row_length=128)
    logits, gradients = outcome(model, batch)
    placed(model)
    assert model.plan.distinct_tokens
    found, again = (outcome(model, batch.to(CUDA)) for _ in range(2))
    assert model.attention.sizes(batch, DTI).tokens == sum_rows.TOKENS
    assert torch.equal(found[0], again[0])
    torch.testing.assert_close(found[0].cpu(), logits, atol=1e-3, rtol=1e-3)
    for name, gradient in gradients.items():
        assert (found[1][name].cpu() - gradient).norm() <= 1e-3 * gradient.norm() + TOLERANCE, name
    torch.compiler.reset()
