"""Frozen weights in bfloat16 or float8: what is trained stays fp32, and the model stays nearly what it is in fp32."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import LlamaConfig

from dti_pipeline.config import Config, LoraConfig, ModelConfig, TrainingConfig
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.speed import float8
from dti_pipeline.paradigms import DTI
from dti_pipeline.training.loader import Loader
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.runner import EagerRunner
from dti_pipeline.training.steps import Steps
from tests.model.architectures import ACCEPTED, write
from tests.model.conftest import SPECIAL, VOCABULARY, Log, placed, small_model, speaking

Outcome = tuple[torch.Tensor, dict[str, torch.Tensor]]
LORA = LoraConfig(rank=4, target_modules=("q_proj", "v_proj"))
MODULES = {"phi3": ("qkv_proj",), "gpt_neox": ("query_key_value",)}


def adapted(path: str, dtype: torch.dtype, kind: str = "llama", **settings: object) -> CTRModel:
    lora = LoraConfig(rank=4, target_modules=MODULES.get(kind, ("q_proj", "v_proj")))
    config = ModelConfig(**{"name_or_path": path, "lora": lora, **settings})
    torch.manual_seed(3)
    model = CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL, frozen_dtype=dtype)
    for name, parameter in model.trained().items():
        if "lora_B" in name:  # zeros at first: nothing would come of them
            nn.init.normal_(parameter, std=0.1)
    return speaking(model)


def outcome(model: CTRModel, batch: Batch) -> Outcome:
    model.zero_grad()
    half = model.lm.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.autocast(batch.token.device.type, torch.bfloat16, enabled=half):
        logits = model(batch)
        loss = binary_cross_entropy_with_logits(logits, batch.label)
    loss.backward()
    # Copies: a model that moves to another device takes its gradients along.
    return logits.detach().cpu(), {n: p.grad.cpu().clone() for n, p in model.trained().items() if p.grad is not None}


def assert_near(found: Outcome, exact: Outcome, logits: float, gradients: float) -> None:
    """Relative to the largest logit, and to a gradient's norm or a tenth of the whole one's."""
    assert (found[0] - exact[0]).abs().max() <= logits * exact[0].abs().max()
    assert found[1].keys() == exact[1].keys()
    whole = torch.stack([g.norm() for g in exact[1].values()]).norm()
    for name, gradient in exact[1].items():
        assert (found[1][name] - gradient).norm() <= gradients * max(gradient.norm(), 0.1 * whole), name


@pytest.mark.parametrize("kind", ACCEPTED)
def test_under_adapters_frozen_weights_are_bfloat16_and_trained_ones_fp32(tmp_path: Path, kind: str) -> None:
    model = adapted(write(tmp_path, kind), torch.bfloat16, kind)
    dtypes = {p.requires_grad: set() for p in model.parameters()}
    for parameter in model.parameters():
        dtypes[parameter.requires_grad].add(parameter.dtype)
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    optimizer = optimizer_for(model, TrainingConfig())
    log = Log.random(users=3, seed=5)
    outcome(model, log.batch(3, 4, row_length=128))
    optimizer.step()
    assert {moment.dtype for state in optimizer.state.values() for moment in state.values()} == {torch.float32}


def test_what_is_trained_whole_is_fp32(tmp_path: Path) -> None:
    scratch = CTRModel(ModelConfig(), DTI, 3, VOCABULARY, 128, SPECIAL, frozen_dtype=torch.bfloat16)
    config = ModelConfig(name_or_path=write(tmp_path, "llama"), lora=LoraConfig(rank=0))
    full = CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL, frozen_dtype=torch.bfloat16)
    assert {p.dtype for model in (scratch, full) for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("head", ["fresh", "verbaliser"])
@pytest.mark.parametrize("fixes", [{}, {"forgetting": "linear", "sum_position": "nope_alibi"}], ids=["plain", "fixes"])
def test_a_bfloat16_body_gives_nearly_the_fp32_model(tmp_path: Path, head: str, fixes: dict[str, str]) -> None:
    path, batch = write(tmp_path, "llama"), Log.random(users=4, seed=5).batch(3, 4, row_length=128)
    exact, half = (
        outcome(adapted(path, dtype, head=head, **fixes), batch) for dtype in (torch.float32, torch.bfloat16)
    )
    assert_near(half, exact, logits=0.05, gradients=0.1)


@pytest.mark.parametrize("head", ["fresh", "verbaliser"])
def test_autocast_rounds_neither_logits_nor_their_gradients(head: str) -> None:
    """In bfloat16 a logit of 10 is off by 1/32, and targets that a model tells apart would tie."""
    log = Log.random(users=6, seed=5, shortest=8)
    rows = log.rows(3, 4, 128)
    model = small_model("dti", 3, head=head)
    half = SimpleNamespace(num_processes=1, device=torch.device("cpu"), backward=lambda loss: loss.backward(),
                           autocast=lambda: torch.autocast("cpu", torch.bfloat16))  # fmt: skip
    states: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        plain = model.logits
        patch.setattr(model, "logits", lambda at_sum: states.append(at_sum) or plain(at_sum))
        with half.autocast():
            logits = model(log.batch_of(rows))
    assert torch.equal(logits, model.logits(states[0]))
    config = TrainingConfig(device="cpu")
    loader = Loader(rows, Steps(rows, 10**9, 1, 0), 10**9, half.device)
    EagerRunner(model, optimizer_for(model, config), half, 1.0).gradients(loader.micro_batches(0))
    rows_of_labels = model.lm.get_output_embeddings().weight if model.head is None else model.head.weight
    gradient = rows_of_labels.grad
    assert gradient is not None
    assert (gradient != gradient.bfloat16()).float().mean() > 0.5 * (gradient != 0).float().mean()


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_embeddings_and_label_rows_are_those_of_peft(tmp_path: Path, kind: str, tied: bool) -> None:
    """Ours are looked up without its copy of the matrix."""
    model = adapted(write(tmp_path, kind, tie_word_embeddings=tied), torch.float32, kind, head="verbaliser")
    with torch.no_grad():
        for name, parameter in model.trained().items():
            if "trainable_tokens" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    token = torch.arange(VOCABULARY).view(2, -1)
    found = backbone.embed(model.lm, token, model.trained_tokens)
    torch.testing.assert_close(found, decoder_of(model.lm).get_input_embeddings()(token))
    rows = backbone.vocabulary_rows(model.lm, model.label_tokens, model.trained_tokens)
    assert torch.equal(rows, model.lm.get_output_embeddings().weight[model.label_tokens])


def test_a_model_of_a_shape_is_made_without_a_checkpoint_where_it_shall_be(tmp_path: Path) -> None:
    shape = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    lm = backbone.random_weights(shape, torch.device("cpu"), torch.bfloat16)
    before = {name: p.clone() for name, p in lm.named_parameters()}
    config = ModelConfig(name_or_path="none", lora=LORA)
    model = CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL, frozen_dtype=torch.bfloat16, lm=lm)
    assert model.plan.last_layer_at_sums
    logits, gradients = outcome(speaking(model), Log.random(users=3, seed=5).batch(3, 4, row_length=128))
    assert logits.abs().max() > 0
    assert len(gradients) > 4
    for name, parameter in model.lm.get_base_model().named_parameters():
        plain = name.replace(".base_layer", "").replace(".token_adapter", "").replace(".original_module", "")
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[plain]), f"{name}: the probe must leave weights as they are"


def matrices(tokens: int = 64, inputs: int = 256, outputs: int = 96) -> tuple[torch.Tensor, nn.Linear]:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():  # rows of very different size, as real ones: a scale each keeps all of them
        layer.weight.mul_(torch.logspace(-3, 1, outputs)[:, None])
    return torch.randn(tokens, inputs) * torch.logspace(-2, 2, tokens)[:, None], layer


def test_float8_products_are_near_and_so_are_their_gradients() -> None:
    x, layer = matrices()
    fast = float8.Float8Linear(layer)
    x, same = x.requires_grad_(), x.detach().clone().requires_grad_()
    out, exact = fast(x), layer(same)
    # Of each row's and column's own size: nothing small is lost beside something large.
    noise = (out - exact) / (x.detach().norm(dim=1, keepdim=True) * layer.weight.norm(dim=1) / x.shape[1] ** 0.5)
    assert noise.abs().max() < 0.2
    assert 0.01 < noise.std() < 0.06
    direction = torch.randn(out.shape)
    (out * direction).sum().backward()
    (exact * direction).sum().backward()
    assert ((x.grad - same.grad).norm(dim=1) / same.grad.norm(dim=1)).max() < 0.08


def test_float8_rounds_as_its_format_says() -> None:
    rounded, scale = float8.quantise(
        torch.tensor([[448.0, 1.0, 1.06, 0.0], [-2e-6, 1e-6, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    )
    expected = torch.tensor([[448.0, 1.0, 1.0, 0.0], [-2e-6, 1e-6, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(rounded.float() * scale, expected)


def test_float8_takes_the_place_of_frozen_layers_only(tmp_path: Path) -> None:
    path, batch = write(tmp_path, "llama"), Log.random(users=4, seed=5).batch(3, 4, row_length=128)
    exact = outcome(adapted(path, torch.float32), batch)
    model = adapted(path, torch.float32)
    layers = decoder_of(model.lm).layers
    float8.replace(layers)
    kinds = [type(module) for module in layers.modules() if isinstance(module, nn.Linear | float8.Float8Linear)]
    assert kinds.count(float8.Float8Linear) == 7 * len(layers)
    assert kinds.count(nn.Linear) == 4 * len(layers), "adapters"
    found = outcome(model, batch)
    assert_near(found, exact, logits=0.25, gradients=0.4)
    assert not torch.equal(found[0], exact[0])


def test_float8_is_refused_in_one_sentence_where_it_cannot_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"model\.frozen_weights` must be plain where every weight is trained"):
        ModelConfig(frozen_weights="float8")
    config = ModelConfig(name_or_path=write(tmp_path, "llama"), lora=LORA, frozen_weights="float8")
    with pytest.raises(InputError, match=r"plain where training\.dtype is not bfloat16"):
        Config(model=config)
    model = CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL, frozen_dtype=torch.bfloat16)
    with pytest.raises(InputError, match=r"needs a CUDA device of compute capability 8\.9 or newer"):
        model.place(model.plan)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    layer = nn.ModuleList([nn.Sequential(nn.Linear(32, 24).requires_grad_(False))])
    with pytest.raises(InputError, match=r"multiples of 16, and 0\.0 is 24 x 32"):
        float8.freeze(layer, torch.device("cuda"))


@pytest.mark.gpu
def test_float8_on_cuda_is_its_plain_product() -> None:
    x, layer = matrices()
    outputs = []
    for device in ("cpu", "cuda"):
        fast = float8.Float8Linear(layer.bfloat16()).to(device)
        given = x.detach().to(device, torch.bfloat16).requires_grad_()
        out = fast(given)
        out.backward(torch.linspace(-1, 1, out.numel(), device=device).view_as(out).to(out.dtype))
        outputs.append((out.float().cpu(), given.grad.float().cpu()))
    for found, expected in zip(outputs[1], outputs[0], strict=True):
        assert (found - expected).norm() < 0.01 * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["plain", "float8"])
@pytest.mark.parametrize("fixes", [{}, {"forgetting": "linear", "sum_position": "nope_alibi"}], ids=["plain", "fixes"])
def test_a_compiled_step_of_adapters_on_cuda_is_nearly_the_cpu_s_in_fp32(
    tmp_path: Path, weights: str, fixes: dict[str, str]
) -> None:
    cuda = torch.device("cuda")
    path = write(tmp_path, "llama", hidden_size=64, intermediate_size=96, head_dim=16, initializer_range=0.1)
    batch = Log.random(users=12, seed=7, shortest=6, longest=20).batch(3, 6, row_length=512)
    exact = outcome(adapted(path, torch.float32, **fixes), batch)
    model = adapted(path, torch.bfloat16, frozen_weights=weights, **fixes)
    placed(model)
    found = outcome(model, batch.to(cuda))
    assert_near(found, exact, *((0.05, 0.1) if weights == "plain" else (0.3, 0.4)))


@pytest.mark.gpu
@pytest.mark.parametrize("fixes", [{}, {"forgetting": "linear", "sum_position": "nope_alibi"}], ids=["plain", "fixes"])
def test_a_step_never_waits_for_the_gpu(tmp_path: Path, fixes: dict[str, str]) -> None:
    cuda = torch.device("cuda")
    path = write(tmp_path, "llama", hidden_size=64, intermediate_size=96, head_dim=16)
    model = adapted(path, torch.bfloat16, **fixes).train()
    model.place(model.make_plan(cuda, torch.bfloat16))
    optimizer = optimizer_for(model, TrainingConfig())
    waiting = Log.random(users=12, seed=7, shortest=6, longest=20).batch(3, 6, row_length=512).pin()
    try:
        for turn in range(3):
            torch.cuda.set_sync_debug_mode("error" if turn == 2 else "default")
            batch = waiting.to(cuda)
            with torch.autocast("cuda", torch.bfloat16):
                loss = binary_cross_entropy_with_logits(model(batch), batch.label, reduction="sum")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")
