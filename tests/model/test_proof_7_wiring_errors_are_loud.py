"""Proof 7: no wiring mistake becomes plain causal attention, or any other attention than the mask's, in silence.

transformers gives an attention function it does not know no mask, and most of its functions take a missing mask for
plain causal attention. Each test here walks one way into that and must meet an error.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.attention import interface
from dti_pipeline.modeling.attention.backends import Banded
from dti_pipeline.modeling.attention.interface import BatchAttention, attend
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paradigms import named
from tests.model.architectures import REFUSED, write
from tests.model.conftest import SPECIAL, VOCABULARY, Log, Watching, logits_by_target, small_model, speaking

ROW = 256


def pretrained(path: str, paradigm: str = "dti_isolated", row_length: int = ROW, **settings: Any) -> CTRModel:
    settings = {"lora": LoraConfig(rank=0), **settings}
    model = CTRModel(ModelConfig(name_or_path=path, **settings), named(paradigm), 2, VOCABULARY, row_length, SPECIAL)
    return speaking(model)


@pytest.fixture
def model() -> CTRModel:
    return small_model("dti", 2)


@pytest.fixture
def batch() -> Any:
    return Log.random(users=3, seed=0).batch(2, 3)


def test_a_forward_pass_without_its_batch(model: CTRModel, batch: Any) -> None:
    with pytest.raises(RuntimeError, match="without its batch"):
        model.lm(input_ids=batch.token)


def test_a_model_that_was_moved_without_its_plan(model: CTRModel, batch: Any) -> None:
    model.plan = model.make_plan(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="the plan is for cuda, and the batch is on cpu"):
        model(batch)


def test_a_mask_beside_that_of_the_batch(model: CTRModel, batch: Any) -> None:
    decoder = decoder_of(model.lm)
    embedded = decoder.get_input_embeddings()(batch.token)
    own = model.batch_attention(batch, embedded)
    four = torch.zeros(len(batch.token), 1, ROW, ROW)
    with pytest.raises(RuntimeError, match="a mask beside that of its batch"):
        decoder(inputs_embeds=embedded, position_ids=batch.position, attention_mask=four, use_cache=False, dti=own)


def test_an_attention_name_that_is_not_registered(
    model: CTRModel, batch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = write(tmp_path, "llama")
    monkeypatch.delitem(AttentionInterface._global_mapping, interface.NAME)
    with pytest.raises(KeyError, match="dti"):
        model(batch)
    with pytest.raises(InputError, match="no causal language model that can take our mask"):
        pretrained(checkpoint)


@pytest.mark.parametrize("other", ["sdpa", "eager"])
@pytest.mark.parametrize("by", ["method", "configuration"])
def test_another_attention_set_after_the_model_was_built(model: CTRModel, batch: Any, other: str, by: str) -> None:
    before = logits_by_target(model, batch)
    if by == "method":
        model.lm.set_attn_implementation(other)
    else:
        model.lm.config._attn_implementation = other
    with pytest.raises(RuntimeError, match=f"attention is '{other}', not ours"):
        model(batch)
    # What the error prevents: transformers itself has no objection, and computes something else.
    decoder = decoder_of(model.lm)
    embedded = decoder.get_input_embeddings()(batch.token)
    decoder(
        inputs_embeds=embedded, position_ids=batch.position, use_cache=False, dti=model.batch_attention(batch, embedded)
    )
    model.lm.set_attn_implementation(interface.NAME)
    assert logits_by_target(model, batch) == before


def test_a_checkpoint_that_was_saved_with_another_attention(tmp_path: Path, batch: Any) -> None:
    path = write(tmp_path / "plain", "llama")
    other = write(tmp_path / "sdpa", "llama", attn_implementation="sdpa")
    assert logits_by_target(pretrained(other), batch) == logits_by_target(pretrained(path), batch)


@pytest.mark.parametrize("lora", [0, 4])
def test_our_attention_is_called_once_a_layer_and_nothing_else_is(tmp_path: Path, batch: Any, lora: int) -> None:
    model = pretrained(write(tmp_path, "llama", num_hidden_layers=3), lora=LoraConfig(rank=lora))
    decoder = decoder_of(model.lm)
    embedded = decoder.get_input_embeddings()(batch.token)
    own = model.batch_attention(batch, embedded)
    watching = Watching(own.backend)
    model.states(embedded, batch.position, dataclasses.replace(own, backend=watching))
    assert [module for module, *_ in watching.calls] == [layer.self_attn for layer in decoder.layers]


def test_attention_dropout_of_a_checkpoint_is_taken_out_and_any_other_is_an_error(tmp_path: Path, batch: Any) -> None:
    model = pretrained(write(tmp_path / "dropout", "llama", attention_dropout=0.5))
    without = pretrained(write(tmp_path / "none", "llama"))
    before = logits_by_target(without, batch)
    assert logits_by_target(model.train(), batch) == before
    for layer in decoder_of(model.lm).layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(RuntimeError, match="dropout"):
        model(batch)


def heads() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 2, 8, 4), torch.zeros(1, 2, 8, 4), torch.zeros(1, 2, 8, 4)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(2)}, "s_aux"),
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"is_causal": True}, "is_causal"),
        ({"output_attentions": True}, "output_attentions"),
        ({"sliding_window": 7}, "window of 7 in 8 tokens"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_a_wish_that_the_attention_does_not_know(wish: dict[str, Any], sentence: str) -> None:
    batch = BatchAttention(Banded(((0, 0, torch.ones(1, 1, 8, 8, dtype=torch.bool)),)))
    with pytest.raises(RuntimeError, match=sentence):
        attend(torch.nn.Identity(), *heads(), None, dti=batch, **wish)
    out, _ = attend(torch.nn.Identity(), *heads(), None, dti=batch, sliding_window=8, softcap=None)
    assert out.shape == (1, 8, 2, 4)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}),
        ("gemma3_text", {"sliding_window": 64}),
    ],
)
def test_a_window_of_the_row_s_length_is_not_felt(
    tmp_path: Path, kind: str, changes: dict[str, Any], batch: Any
) -> None:
    wide = pretrained(write(tmp_path / "wide", kind, **{**changes, "sliding_window": ROW}))
    wider = pretrained(write(tmp_path / "wider", kind, **{**changes, "sliding_window": 10 * ROW}))
    assert logits_by_target(wide, batch) == logits_by_target(wider, batch)


@pytest.mark.parametrize("kind", REFUSED)
def test_an_architecture_that_cannot_obey_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    with pytest.raises(InputError, match=REFUSED[kind][1]) as refusal:
        pretrained(path)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("qwen3", {"forgetting": "linear"}, "set model.forgetting to none"),  # norms its keys
        ("olmo2", {"forgetting": "linear"}, "set model.forgetting to none"),  # norms after attention
        ("starcoder2", {"forgetting": "linear"}, "set model.forgetting to none"),  # LayerNorm
        ("phi3", {"forgetting": "linear"}, "set model.forgetting to none"),  # one projection for q, k and v
        ("granite", {"forgetting": "linear", "embedding_multiplier": 3.0}, "set model.forgetting to none"),
        ("gemma3_text", {"sum_position": "nope_alibi"}, "rope or rope_alibi"),  # two rotary embeddings
        ("gpt_neox", {"sum_position": "nope_alibi"}, "rope or rope_alibi"),  # rotates a part of the head
        ("cohere", {"sum_position": "nope_alibi"}, "rope or rope_alibi"),  # rotates neighbouring pairs
    ],
)
def test_a_fix_that_an_architecture_cannot_take_is_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], sentence: str
) -> None:
    multiplier = {name: settings.pop(name) for name in list(settings) if name == "embedding_multiplier"}
    path = write(tmp_path, kind, **multiplier)
    with pytest.raises(InputError, match=sentence):
        pretrained(path, **settings)
    pretrained(path)  # without the fix it is welcome


@pytest.mark.parametrize("layer", ["mean", "shift"])
def test_a_layer_that_mixes_tokens_beside_attention_is_found(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture nobody has thought of: its MLP looks at other tokens too."""
    from transformers.models.llama import modeling_llama

    honest = modeling_llama.LlamaMLP.forward

    def mixing(self: Any, x: torch.Tensor) -> torch.Tensor:
        other = x.mean(1, keepdim=True) if layer == "mean" else x.roll(1, dims=1)
        return honest(self, x + 0.1 * other)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", mixing)
    with pytest.raises(InputError, match="mixes tokens in layers that our mask does not reach"):
        small_model("dti", 2)


def test_building_a_model_leaves_mode_and_random_numbers_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "llama")
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    model = CTRModel(
        ModelConfig(name_or_path=path, lora=LoraConfig(rank=0), head="verbaliser"), "dti", 2, VOCABULARY, ROW, SPECIAL
    )
    assert torch.equal(torch.randn(3), expected)
    assert model.training
