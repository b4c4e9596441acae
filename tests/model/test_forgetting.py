"""Forgetting by distance: the fast form is the plain one in every layer, forward and backward, and obeys a(d)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.modeling.attention.backends import Banded
from dti_pipeline.modeling.attention.distance import alibi_slopes, forgetting
from dti_pipeline.modeling.attention.interface import BatchAttention
from dti_pipeline.modeling.attention.layers import LayerInput
from dti_pipeline.modeling.attention.sums import rows as sum_rows
from dti_pipeline.modeling.attention.sums.blocked import blocked_sum_attention
from dti_pipeline.modeling.attention.sums.naive import naive_sum_attention
from dti_pipeline.modeling.attention.sums.rows import Initial, SumRows, with_rows
from dti_pipeline.modeling.masks.visibility import intervals
from dti_pipeline.modeling.masks.visibility import visible as visible_pairs
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paradigms import DTI
from tests.model.architectures import write
from tests.model.conftest import (
    SPECIAL,
    TOLERANCE,
    VOCABULARY,
    Log,
    Watching,
    differences,
    histories,
    k_of,
    logits_by_target,
    planned,
    small_model,
    speaking,
    sums_of,
    user_texts,
)

CUDA_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03}
FAMILIES = ("linear", "quadratic", "square_root")


def calls_of(model: CTRModel, batch: Any) -> tuple[torch.Tensor, list[tuple[Any, ...]], Any]:
    """What each layer hands to attention in a forward pass that can be differentiated; and what entered the first."""
    embedded = decoder_of(model.lm).get_input_embeddings()(batch.token)
    sums = sums_of(model, batch, embedded)
    # The CPU's form of the mask, on a GPU too: nothing has to be compiled.
    watching = Watching(Banded.of(intervals(batch.tokens, model.paradigm, model.context)))
    model.states(embedded, batch.position, BatchAttention(watching, sums))
    return embedded, watching.calls, sums


def at_sums(query: torch.Tensor, key: torch.Tensor, sums: SumRows, layer: LayerInput) -> tuple[torch.Tensor, ...]:
    """The [SUM] rows' queries and all keys, as their rule has them."""
    query = with_rows(query, sums.slot)[1]
    return (query, key) if sums.keep_rotation else (layer.unrotated(query, sums.slot), layer.unrotated(key))


def both_forms(call: tuple[Any, ...], sums: Any) -> list[torch.Tensor]:
    module, query, key, value, scale, layer = call
    query, key = at_sums(query, key, sums, layer)
    valid = sums.valid[:, None, :, None]
    return [
        form(module, query, key, value, sums, scale, layer) * valid
        for form in (blocked_sum_attention, naive_sum_attention)
    ]


def assert_forms_agree(model: CTRModel, batch: Any) -> None:
    _, calls, sums = calls_of(model, batch)
    # What is made of a token once has no gradient at each place where it stands: the matrix has them all.
    wanted = [
        decoder_of(model.lm).get_input_embeddings().weight,
        *(p for name, p in model.lm.named_parameters() if "layers" in name),
    ]
    for call in calls:
        fast, plain = both_forms(call, sums)
        torch.testing.assert_close(fast, plain, atol=TOLERANCE, rtol=TOLERANCE)
        direction = torch.randn(fast.shape, generator=torch.Generator().manual_seed(0)) / fast.numel() ** 0.5
        gradients = [
            torch.autograd.grad((form * direction).sum(), wanted, retain_graph=True, allow_unused=True)
            for form in (fast, plain)
        ]
        touched = 0
        for one, other in zip(*gradients, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=1e-4)
                touched += int(one.abs().max() > 0)
        assert touched > 3


@pytest.mark.parametrize("family", ["none", *FAMILIES])
@pytest.mark.parametrize("position", ["rope", "rope_alibi", "nope_alibi"])
@given(keys=st.sampled_from([4, 16, 256]),
       log=st.builds(Log.random, prefix=st.sampled_from([(), (9, 8)]), user=user_texts, **histories),
       n=st.integers(0, 4), k=st.sampled_from([1, 3, None]), most=st.sampled_from([0.0, 0.4, 1.0]),
       kv_heads=st.sampled_from([1, 2, 4]),
       paradigm=st.sampled_from(["sliding_window", "dti", "dti_growing", "dti_isolated"]))  # fmt: skip
@settings(max_examples=6, deadline=None)
def test_the_fast_form_is_the_plain_one_in_a_llama(
    family: str, position: str, keys: int, log: Log, n: int, k: int | None, most: float, kv_heads: int, paradigm: str
) -> None:
    """Whatever the size of a block of keys, and so however many [SUM]s share one and however many one reads from."""
    model = small_model(paradigm, n, prefix=log.store.longest_opening, forgetting=family, forgetting_max=most,
                        sum_position=position, kv_heads=kv_heads)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sum_rows, "KEYS", keys)
        assert_forms_agree(model, log.batch(n, k, row_length=120))


def assert_compiled_form_is_the_plain_one(
    device: str, dtype: torch.dtype, paradigm: str, backend: str, tolerance: float
) -> None:
    """Relative to the norm of each output and gradient; both fixes on. Keys and values have no gradients of their own:
    the plain form makes them from the layer's input."""
    model = small_model(paradigm, 4, forgetting="linear", sum_position="nope_alibi", hidden_size=64).to(dtype)
    model.slopes = model.slopes.float()
    model.place(model.make_plan(torch.device(device), dtype))
    log = Log.random(users=12, seed=7, shortest=10, longest=20)
    batch = log.batch(4, 1 if paradigm == "sliding_window" else 6, row_length=512).to(torch.device(device))
    embedded, calls, sums = calls_of(model, batch)
    module, query, key, value, scale, layer = calls[1]
    query, key = at_sums(query, key, sums, layer)
    results = []
    for form in (
        torch.compile(blocked_sum_attention, dynamic=False, fullgraph=True, backend=backend),
        naive_sum_attention,
    ):
        out = form(module, query, key, value, sums, scale, layer) * sums.valid[:, None, :, None]
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
        gradients = torch.autograd.grad((out * direction).sum(), (query, embedded), retain_graph=True)
        results.append([x.float() for x in (out, *gradients)])
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", CUDA_TOLERANCE, ids=["fp32", "bf16"])
@pytest.mark.parametrize("paradigm", ["sliding_window", "dti"])
def test_on_cuda_the_compiled_fast_form_is_the_plain_one(dtype: torch.dtype, paradigm: str) -> None:
    assert_compiled_form_is_the_plain_one("cuda", dtype, paradigm, "inductor", CUDA_TOLERANCE[dtype])


def test_the_compiled_fast_form_is_the_plain_one() -> None:
    """What a compiler is given; it generates no kernels here."""
    torch._dynamo.reset()
    assert_compiled_form_is_the_plain_one("cpu", torch.float32, "dti", "aot_eager", TOLERANCE)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "gemma", "mixtral"])
@pytest.mark.parametrize("position", ["rope", "nope_alibi"])
def test_the_fast_form_is_the_plain_one_with_biases_and_other_norms(tmp_path: Path, kind: str, position: str) -> None:
    path = write(tmp_path, kind)
    config = ModelConfig(name_or_path=path, lora=LoraConfig(rank=0), forgetting="linear", sum_position=position)
    model = CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL)
    with torch.no_grad():  # checkpoints come with biases of zero and norms of one: no test of either
        for name, parameter in model.lm.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    assert_forms_agree(speaking(model), Log.random(users=3, seed=5).batch(3, 4, row_length=128))


@pytest.mark.parametrize("position", ["rope", "nope_alibi"])
def test_under_adapters_a_gradient_for_the_trained_tokens_alone_is_the_whole_one(
    tmp_path: Path, position: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = LoraConfig(rank=4, target_modules=("q_proj", "k_proj", "v_proj"))
    config = ModelConfig(name_or_path=write(tmp_path, "llama"), lora=lora, forgetting="linear", sum_position=position)
    torch.manual_seed(2)
    model = speaking(CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL))
    for name, parameter in model.trained().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    batch = Log.random(users=3, seed=5).batch(3, 4, row_length=128)

    def outcome() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        logits = model(batch)
        logits.square().mean().backward()
        return logits.detach(), {name: p.grad.clone() for name, p in model.trained().items()}

    found = outcome()
    plain = SimpleNamespace(of=lambda state, *_: Initial(state))
    monkeypatch.setattr("dti_pipeline.modeling.network.batch_attention.Initial", plain)
    planned(model, distinct_tokens=False)
    expected = outcome()
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)
    assert min(float(gradient.norm()) for gradient in expected[1].values()) > 1e-4


@pytest.mark.parametrize("position", ["rope", "rope_alibi", "nope_alibi"])
@pytest.mark.parametrize("paradigm", ["sliding_window", "dti"])
def test_forgetting_nothing_is_no_forgetting(paradigm: str, position: str) -> None:
    batch = Log.random(users=4, seed=2).batch(3, k_of(paradigm))
    scores = [
        logits_by_target(small_model(paradigm, 3, sum_position=position, **fix), batch)
        for fix in ({"forgetting": "none"}, {"forgetting": "linear", "forgetting_max": 0.0}, {"forgetting": "linear"})
    ]
    assert max(differences(scores[0], scores[1]).values()) < TOLERANCE
    assert max(differences(scores[0], scores[2]).values()) > 1e-3


def test_what_is_forgotten_completely_is_read_as_its_initial_embedding() -> None:
    """At a(n) = 1 no change of a state n back, or of its key or value, reaches the [SUM]; nearer ones do."""
    n = 2
    model = small_model("dti", n, forgetting="linear", forgetting_max=1.0, initial_std=0.1)
    batch = Log.random(users=2, seed=3, shortest=8).batch(n, None, row_length=128)
    _, calls, sums = calls_of(model, batch)
    module, query, key, value, scale, layer = calls[1]
    hidden = layer.hidden.detach().requires_grad_()
    key, value = (x.detach().requires_grad_() for x in (key, value))
    query = with_rows(query, sums.slot)[1]
    out = blocked_sum_attention(module, query, key, value, sums, scale, dataclasses.replace(layer, hidden=hidden))
    sum_of_last = int(sums.valid[0].sum()) - 1
    gradients = torch.autograd.grad(out[0, :, sum_of_last].sum(), (hidden, key, value))
    moved = [gradients[0][0].abs().sum(-1) > 0, *(g[0].abs().sum((0, 2)) > 0 for g in gradients[1:])]
    back = batch.interaction[0, sums.slot[0, sum_of_last]] - batch.interaction[0]
    visible = visible_pairs(batch.tokens, DTI, n)[0, sums.slot[0, sum_of_last]]
    # With key and value held a state only counts in the norm of mixtures, and at d = 0 nothing is mixed.
    for touched, nearest in zip(moved, (1, 0, 0), strict=True):
        assert not touched[visible & (back >= n)].any()
        assert touched[visible & (back < n) & (back >= nearest)].all()


def test_the_instruction_is_never_forgotten_and_distance_counts_interactions() -> None:
    log = Log.random(users=1, seed=3, shortest=6, prefix=(9, 8))
    batch = log.batch(4, None, row_length=128)
    model = small_model("dti", 4, prefix=2, forgetting="linear", forgetting_max=0.8)
    sums = sums_of(model, batch)
    for slot in sums.slot[0].tolist():
        for key in range(slot + 1):
            interaction = int(batch.interaction[0, key])
            back = 0 if interaction < 0 else int(batch.interaction[0, slot]) - interaction
            amount = sums.rule.pairs(torch.tensor([[slot]]), torch.tensor([[key]])).amount
            assert amount.item() == pytest.approx(0.8 * min(back / 4, 1))


def test_families_rise_from_nothing_to_their_maximum_at_n() -> None:
    distance = torch.arange(0, 12)
    for family, half in (("linear", 0.5), ("quadratic", 0.25), ("square_root", 0.5**0.5)):
        amount = forgetting(distance, family, 0.8, 8)
        assert amount[0] == 0
        assert amount[4] == pytest.approx(0.8 * half)
        assert (amount.diff()[:8] > 0).all()
        assert (amount[8:] == 0.8).all()
    assert forgetting(torch.tensor([0]), "linear", 1.0, 0) == 0
    with pytest.raises(ValueError, match="unknown forgetting family 'cubic'"):
        forgetting(distance, "cubic", 1.0, 8)


def test_alibi_slopes_are_its_authors() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    twelve = [*(2.0**-i for i in range(1, 9)), *(2.0**-i for i in (0.5, 1.5, 2.5, 3.5))]
    assert alibi_slopes(12).tolist() == pytest.approx(twelve)
