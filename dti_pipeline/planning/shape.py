"""Shapes of language models, and their numbers of weights: from params.yaml, by name, or from a config.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dti_pipeline.config import ModelConfig
from dti_pipeline.errors import InputError
from dti_pipeline.pretrained import is_gguf, source


@dataclass(frozen=True)
class Shape:
    """A Llama-style decoder: attention with grouped queries, a gated MLP, two norms a layer.

    What other families add is left out, a few weights in ten thousand: biases of queries, keys and values (Qwen2.5),
    norms of queries and keys (Qwen3, Gemma 3) and two more norms a layer (Gemma 3).
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool

    def _matrices(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's matrices, by the names that LoRA's target_modules use."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, query),
            "k_proj": (self.hidden, key),
            "v_proj": (self.hidden, key),
            "o_proj": (query, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def body(self) -> int:
        """Weights that every token passes: the layers' matrices."""
        return self.layers * sum(a * b for a, b in self._matrices().values())

    @property
    def parameters(self) -> int:
        """All weights: body, norms, embeddings."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.body + (2 * self.layers + 1) * self.hidden + embeddings

    def adapters(self, rank: int, modules: Iterable[str]) -> int:
        """Weights of LoRA adapters of ``rank`` on the named matrices of every layer."""
        matrices = self._matrices()
        return self.layers * sum(rank * sum(matrices[name]) for name in modules if name in matrices)


#: From their makers' config.json.
SHAPES = {
    "llama-3.1-8b": Shape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256, tied=False),
    "llama-3.2-3b": Shape("llama-3.2-3b", 28, 3072, 24, 8, 128, 8192, 128256, tied=True),
    "llama-3.2-1b": Shape("llama-3.2-1b", 16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "mistral-7b": Shape("mistral-7b", 32, 4096, 32, 8, 128, 14336, 32768, tied=False),
    "qwen3-8b": Shape("qwen3-8b", 36, 4096, 32, 8, 128, 12288, 151936, tied=False),
    "qwen2.5-0.5b": Shape("qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 151936, tied=True),
    "qwen2.5-1.5b": Shape("qwen2.5-1.5b", 28, 1536, 12, 2, 128, 8960, 151936, tied=True),
    "gemma-3-270m": Shape("gemma-3-270m", 18, 640, 4, 1, 256, 2048, 262144, tied=True),
    "smollm2-135m": Shape("smollm2-135m", 30, 576, 9, 3, 64, 1536, 49152, tied=True),
}


def shape_of(model: ModelConfig, vocabulary: int, name: str | None = None) -> Shape:
    """The shape of ``name``, a folder with a config.json or one of SHAPES; by default that of params.yaml's model.
    ``vocabulary`` is that of a model from scratch. InputError for an unknown name; nothing is downloaded."""
    name = name or model.name_or_path
    if name is None:
        return Shape(
            "from scratch", model.layers, model.hidden_size, model.heads, model.kv_heads,
            model.hidden_size // model.heads, model.intermediate_size, vocabulary, model.tie_embeddings,
        )  # fmt: skip
    if is_gguf(name):
        return _from_gguf(name)
    own = Path(name).expanduser() / "config.json"
    known = Path(name).name.lower().removesuffix("-instruct")
    if known in SHAPES and not own.is_file():
        return SHAPES[known]
    file = own if own.is_file() else _cached(name)
    if file is None:
        raise InputError(
            f"no model shape for {name!r}: name one of {', '.join(SHAPES)}, or a folder that holds a config.json"
        )
    return _from_file(name, file)


def _cached(name: str) -> Path | None:
    """The config.json of a Hugging Face model, where it was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no valid name for the hub
        return None
    return Path(found) if isinstance(found, str) else None


def _from_gguf(name: str) -> Shape:
    from transformers import AutoConfig

    described = source(name, "model.name_or_path")
    try:
        return _of(name, Path(name), AutoConfig.from_pretrained(**described, trust_remote_code=False).to_dict())
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"{name} is no GGUF file of a decoder model ({error})") from error


def _from_file(name: str, path: Path) -> Shape:
    try:
        return _of(name, path, json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not the config.json of a decoder model ({error})") from error


def _of(name: str, path: Path, content: dict[str, Any]) -> Shape:
    try:
        content = content.get("text_config", content)
        if any("expert" in key for key in content):
            raise InputError(f"{path} is of a mixture of experts: its cost is not planned, only a dense model's")
        hidden, heads = content["hidden_size"], content["num_attention_heads"]
        gemma = str(content.get("model_type", "")).startswith("gemma")  # tied unless the file says otherwise
        return Shape(
            name=name,
            layers=content["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            kv_heads=content.get("num_key_value_heads") or heads,
            head_dim=content.get("head_dim") or hidden // heads,
            intermediate=content["intermediate_size"],
            vocabulary=content["vocab_size"],
            tied=bool(content.get("tie_word_embeddings", gemma)),
        )
    except KeyError as error:
        raise InputError(f"{path} is not the config.json of a decoder model ({error})") from error
