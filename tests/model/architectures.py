"""Small random checkpoints of many architectures, and a tokenizer, as a user would have them on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

logging.disable_progress_bar()
logging.set_verbosity_error()

#: What every small checkpoint has, where its architecture has a word for it.
SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
#: Architectures by transformers' model type, with what makes them themselves.
ACCEPTED: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 512},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma3_text": {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
}
#: Architectures that must be refused, and what the sentence says.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bloom": ({}, "attention of its own"),
    "mamba": ({}, "attention of its own"),
    "gptj": ({"rotary_dim": 4}, "no causal language model that can take our mask"),
    "gemma2": ({}, "soft-caps attention scores"),
    "gpt_oss": ({"sliding_window": 512}, "s_aux"),
    "nemotron": ({}, "without its batch"),
    "minimax": ({}, "mixes tokens in layers that our mask does not reach"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "mixes tokens in layers that our mask does not reach"),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, "absolute positions"),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, "absolute positions"),
}


def write(folder: Path, kind: str, seed: int = 0, **changes: Any) -> str:
    """A random checkpoint; its path, as ``model.name_or_path`` wants it."""
    own = ACCEPTED.get(kind) or REFUSED.get(kind, ({}, ""))[0]
    settings = AutoConfig.for_model(kind, **{**SHAPE, **own, **changes})
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    return str(folder)


def write_tokenizer(folder: Path, texts: Iterable[str], vocabulary: int = 300, words: bool = False) -> str:
    """A byte-level BPE tokenizer without padding or [SUM], as most pretrained models come; its path. ``words``: yes and
    no are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *["a yes a no"] * (9999 if words else 0)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    return str(folder)
