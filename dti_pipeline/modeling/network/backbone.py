"""The language model: Llama-style from scratch, or any causal LM by name or path, with our attention.

A model that cannot obey a paradigm's mask is refused here, in one sentence, before anything is trained.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from dti_pipeline import pretrained
from dti_pipeline.config import ModelConfig
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.attention import interface, layers
from dti_pipeline.modeling.attention.sums.rows import Initial
from dti_pipeline.modeling.network import probe, windows

#: A token's score with itself before training, at most: what a model of 128 in 4 heads has at an initial_std of 0.1.
SHARPEST = 7.25


def build(
    config: ModelConfig,
    vocabulary: int,
    row_length: int,
    trained_tokens: list[int],
    frozen_dtype: torch.dtype = torch.float32,
    lm: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """A causal LM whose attention is ours; with LoRA adapters where the model is pretrained and rank > 0.

    ``vocabulary`` is the tokenizer's size (embeddings are resized to it); ``trained_tokens`` are the ids whose
    embeddings are trained beside the adapters: [SUM], and labels that the vocabulary lacked. Weights that adapters
    leave as they are have ``frozen_dtype``, all others are fp32. ``lm`` stands in for the model that ``config`` names.
    """
    logging.disable_progress_bar()  # transformers draws one for every file it reads or writes; ours is for training
    adapted = config.name_or_path is not None and config.lora.rank > 0
    if lm is None and config.name_or_path is None:
        lm = from_scratch(config, vocabulary, row_length)
    elif lm is None:
        lm = _pretrained(config, vocabulary, frozen_dtype if adapted else torch.float32)
    check(lm, row_length)
    stack: list[nn.Module] = list(getattr(lm.get_decoder(), "layers", ()))
    for layer in stack:
        layers.hand_over_input(layer)
    probe.check(lm, config.sum_position, config.forgetting != "none")
    probe.check_window(lm, row_length)
    layers.support_sum_rows(stack[-1])
    if not probe.last_layer_at_sums_is_exact(lm):
        layers.drop_sum_rows(stack[-1])
    if adapted:
        return _with_lora(lm, config, trained_tokens)
    output = lm.get_output_embeddings()
    if config.head == "fresh" and output.weight is not lm.get_input_embeddings().weight:
        output.weight.requires_grad_(False)  # never read: a gradient and moments for nothing
    return lm


def random_weights(settings: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A causal LM of that architecture with new weights, drawn where they shall be: 8 B of them in seconds on a GPU."""
    settings.use_cache = False
    with device:
        return AutoModelForCausalLM.from_config(settings, attn_implementation=interface.NAME, dtype=dtype)


def from_scratch(config: ModelConfig, vocabulary: int, row_length: int) -> PreTrainedModel:
    """A Llama in the configured shape, initialised by transformers from torch's global generator."""
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=row_length,
            tie_word_embeddings=config.tie_embeddings,
            initializer_range=config.initial_std,
            use_cache=False,
            attn_implementation=interface.NAME,
        )
    )
    if config.initialisation == "mimetic":
        _tie_initial_keys_to_queries(lm)
    if config.dropout:
        _add_dropout(lm, config.dropout)
    return lm


def _tie_initial_keys_to_queries(lm: PreTrainedModel) -> None:
    """Start every key map as its query map (its group's first, under grouped queries).

    A token then scores itself with sqrt(D) E std², which grows with the width: from 256 on it would look at nothing
    else, and nothing could be learnt of others. Wide models' maps start smaller, so that the score is SHARPEST.
    """
    with torch.no_grad():
        for layer in lm.get_decoder().layers:
            attn = layer.self_attn
            own_score = attn.head_dim**0.5 * lm.config.hidden_size * lm.config.initializer_range**2
            attn.q_proj.weight.mul_(min(1.0, (SHARPEST / own_score) ** 0.5))
            groups = attn.q_proj.weight.unflatten(0, (attn.k_proj.weight.shape[0] // attn.head_dim, -1, attn.head_dim))
            attn.k_proj.weight.copy_(groups[:, 0].flatten(0, 1))


def _pretrained(config: ModelConfig, vocabulary: int, dtype: torch.dtype) -> PreTrainedModel:
    assert config.name_or_path is not None
    source = pretrained.source(config.name_or_path, "model.name_or_path")
    try:
        settings = AutoConfig.from_pretrained(**source, trust_remote_code=False)
        text: Any = settings.get_text_config()
        text.use_cache = False
        if getattr(text, "attention_dropout", 0.0):
            text.attention_dropout = 0.0  # our attention has none; the base models' own training is over
        lm = AutoModelForCausalLM.from_pretrained(
            **source,
            **pretrained.dequantised(source),
            config=settings,
            attn_implementation=interface.NAME,
            dtype=dtype,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"params key `model.name_or_path`: no causal language model that can take our mask at"
            f" {config.name_or_path!r} ({str(error).splitlines()[0]})"
        ) from error
    if lm.get_input_embeddings().weight.shape[0] < vocabulary:
        lm.resize_token_embeddings(vocabulary, mean_resizing=False)
    return lm


def check(lm: PreTrainedModel, row_length: int) -> None:
    """Refuse an architecture that says of itself that it cannot take our mask; :mod:`probe` finds those that do not."""
    name = type(lm).__name__
    settings: Any = lm.config.get_text_config()
    if not getattr(lm, "_supports_attention_backend", False):
        raise InputError(f"{name} has attention of its own that cannot take our mask: use another model.name_or_path")
    if getattr(settings, "attn_logit_softcapping", None):
        raise InputError(f"{name} soft-caps attention scores, which our attention does not: use another model")
    windows.check_chunks(name, settings, row_length)


def require_ours(decoder: PreTrainedModel) -> None:
    """Raise RuntimeError where somebody has given the model another attention since it was built: it would take no
    notice of the mask."""
    if decoder.config._attn_implementation != interface.NAME:
        found = decoder.config._attn_implementation
        raise RuntimeError(f"the model's attention is {found!r}, not ours: it would have been plain causal")


def _with_lora(lm: PreTrainedModel, config: ModelConfig, trained_tokens: list[int]) -> Any:
    from peft import LoraConfig, get_peft_model

    try:
        adapted = get_peft_model(
            lm,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=config.lora.rank,
                lora_alpha=config.lora.alpha,
                target_modules=list(config.lora.target_modules),
                # Only the new rows are trained and saved, not a copy of the whole matrix.
                trainable_token_indices=_trained_rows(lm, config, trained_tokens),
            ),
            autocast_adapter_dtype=False,
        )
    except ValueError as error:
        raise InputError(f"params key `model.lora.target_modules`: {str(error).splitlines()[0]}") from error
    # What is trained is fp32 whatever the rest is, as small updates would be lost in bfloat16; autocast rounds it where
    # it is used. Left alone, peft would widen every adapter's input instead: 20-24 % more memory.
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in adapted.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    return adapted


def _trained_rows(lm: PreTrainedModel, config: ModelConfig, trained_tokens: list[int]) -> dict[str, list[int]]:
    """Rows to train by matrix: of the embedding; and, for a verbaliser over a matrix of its own, of that one too, as
    label tokens that were added to the vocabulary have random rows there."""
    names = {id(module): name for name, module in lm.named_modules()}
    rows = {names[id(lm.get_input_embeddings())]: trained_tokens}
    if config.head == "verbaliser" and lm.get_output_embeddings().weight is not lm.get_input_embeddings().weight:
        rows[names[id(lm.get_output_embeddings())]] = trained_tokens
    return rows


def trained_rows(lm: Any) -> Tensor | None:
    """(R, E) input embeddings of the trained tokens, where all others are frozen; else None."""
    adapter = getattr(decoder_of(lm).get_input_embeddings(), "token_adapter", None)
    if adapter is None:
        return None
    rows = adapter.trainable_tokens_delta["default"] * getattr(adapter.base_layer, "embed_scale", 1.0)
    return rows.to(adapter.base_layer.weight.dtype)


def embed(lm: Any, token: Tensor, trained_tokens: Tensor) -> Tensor:
    """(B, L) -> (B, L, E) input embeddings. peft would copy the whole matrix, forward and backward, for the sake of the
    rows that are trained: here they are put where their tokens are."""
    embedding, rows = decoder_of(lm).get_input_embeddings(), trained_rows(lm)
    if rows is None:
        return embedding(token)
    frozen = embedding.token_adapter.base_layer(token)
    initial = Initial.of(frozen, rows, token, trained_tokens)
    assert initial.rows is not None
    return initial.put(frozen, initial.rows)


def vocabulary_rows(lm: Any, token: Tensor, trained_tokens: Tensor) -> Tensor:
    """(T,) -> (T, E) rows of the output matrix, likewise."""
    output = lm.get_output_embeddings()
    adapter = getattr(output, "token_adapter", None)
    if adapter is None:
        return output.weight[token]
    is_trained = token[:, None] == trained_tokens
    rows = adapter.trainable_tokens_delta["default"][is_trained.long().argmax(-1)]
    return torch.where(is_trained.any(-1, keepdim=True), rows, adapter.base_layer.weight[token].to(rows.dtype))


@torch.no_grad()
def begin_as(lm: Any, token: int, like: int, trained_tokens: Tensor) -> None:
    """Give ``token``, one of the trained ones, the input embedding of another word of the vocabulary."""
    embedding = decoder_of(lm).get_input_embeddings()
    adapter = getattr(embedding, "token_adapter", None)
    if adapter is None:
        embedding.weight[token] = embedding.weight[like]
    else:
        place = trained_tokens.tolist().index(token)
        adapter.trainable_tokens_delta["default"][place] = adapter.base_layer.weight[like]


def whole(lm: Any) -> PreTrainedModel:
    """The causal LM, without adapters around it."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def decoder_of(lm: Any) -> PreTrainedModel:
    """The stack of layers under a causal LM, with or without adapters around it."""
    return whole(lm).get_decoder()


#: Cosines and sines (B, L, D) of some positions, for each layer.
Rotary = list[tuple[Tensor, Tensor]]


def rotary(lm: Any, like: Tensor, position: Tensor) -> Rotary:
    """The rotary embedding of ``position`` (B, L), of the type of ``like``; some models have one a kind of layer."""
    decoder: Any = decoder_of(lm)
    settings: Any = decoder.config.get_text_config()
    kinds = getattr(settings, "layer_types", None)
    if kinds is None or "layer_type" not in inspect.signature(decoder.rotary_emb.forward).parameters:
        return [decoder.rotary_emb(like, position_ids=position)] * settings.num_hidden_layers
    of_kind = {kind: decoder.rotary_emb(like, position, kind) for kind in set(kinds)}
    return [of_kind[kind] for kind in kinds]


def head_width(lm: Any) -> int:
    """D, numbers of a head's vector."""
    settings: Any = decoder_of(lm).config.get_text_config()
    return getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads


def has_biased_projections(lm: Any) -> bool:
    """Whether some layer's keys or values have biases."""
    stack: Any = decoder_of(lm).layers
    return any(
        getattr(getattr(getattr(layer, "self_attn", None), name, None), "bias", None) is not None
        for layer in stack
        for name in ("k_proj", "v_proj")
    )


def _add_dropout(lm: PreTrainedModel, rate: float) -> None:
    """Dropout where a Llama has none: on the embeddings and on what each block adds to the residual stream."""

    def drop(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return functional.dropout(output, rate, module.training)

    decoder = lm.get_decoder()
    decoder.embed_tokens.register_forward_hook(drop)
    for layer in decoder.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)
