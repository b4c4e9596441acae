"""A project home as ``dti pack`` leaves it, made without a log: a packed store, a small tokenizer, a model's folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from benchmarks.lib import llama
from dti_pipeline import artifacts, config
from dti_pipeline.modeling.network import backbone
from dti_pipeline.packing.pack import pack
from dti_pipeline.packing.report import Knowledge, TokenizeReport
from dti_pipeline.packing.store import TokenStore, write_columns
from dti_pipeline.paths import Paths
from dti_pipeline.planning.shape import Shape

#: Tokens of an interaction, its label included: titles, as in MovieLens-1M.
PER_INTERACTION = 11


def write_model(folder: Path, shape: Shape, device: torch.device, positions: int) -> None:
    """A checkpoint of that shape in bfloat16, with weights drawn on ``device``."""
    settings = architecture(shape, positions)
    torch.manual_seed(7)
    backbone.random_weights(settings, device, torch.bfloat16).to("cpu").save_pretrained(folder)


def architecture(shape: Shape, positions: int) -> PretrainedConfig:
    """transformers' configuration of the family that the shape belongs to."""
    return llama.architecture(shape, positions, Qwen2Config if shape.name.startswith("qwen2") else LlamaConfig)


def write_home(home: Path, sections: dict[str, Any], shape: Shape, users: int, paradigm: str) -> None:
    """params.yaml with ``sections``, and tokens and rows of ``users`` histories of equal length, a tenth held out."""
    home.mkdir(parents=True, exist_ok=True)
    artifacts.write_text(home / "params.yaml", json.dumps(sections))
    paths = Paths(home)
    settings = config.load(paths.params)
    length = llama.CONTEXT + 100
    store = llama.log(users, length, PER_INTERACTION, shape.vocabulary)
    held_out = (store.position >= 0.9 * length).astype(np.int8) + (store.position >= 0.95 * length)
    _write_store(paths, replace(store, split=held_out.astype(np.int8), vocabulary=shape.vocabulary))
    pack(settings, paths, paradigm)


def _write_store(paths: Paths, store: TokenStore) -> None:
    with artifacts.publish(paths.tokens, "tokenize", {"tokens": {"template": "", "max_text_tokens": 0}}) as draft:
        _tokenizer().save_pretrained(draft.path / "tokenizer")
        write_columns(draft.path / "texts.arrow", {"token": store.tokens})
        write_columns(draft.path / "offsets.arrow", {"offset": store.offsets})
        columns = {name: getattr(store, name) for name in ("text", "label", "split", "position", "request", "known")}
        write_columns(draft.path / "interactions.arrow", columns)
        tokens = int(store.lengths().sum())
        draft.report = TokenizeReport(
            interactions=len(store.text), texts=len(store.offsets) - 1, texts_cut=0, tokens=tokens,
            tokens_per_interaction=tokens / len(store.text), vocabulary=store.vocabulary,
            special_tokens=store.special, prefix_tokens=(), knowledge=Knowledge(context=store.context),
        )  # fmt: skip


def _tokenizer() -> PreTrainedTokenizerFast:
    """Of the words that a training asks for; the store's texts are numbers alone."""
    made = Tokenizer(WordLevel({"?": 0, "a": 1, ":": 2}, unk_token="?"))
    made.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")
