"""Sections of params.yaml about tokens, prompts and packed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from dti_pipeline.plain import NonNegativeInt, PositiveInt, Range


@dataclass(frozen=True)
class TokensConfig:
    """Item texts to tokens, once for every paradigm."""

    tokenizer: str | None = None  # a transformers tokenizer by name or path; null: train one on the item texts
    vocab_size: Annotated[int, Range(64)] = 4096  # of a trained tokenizer, special tokens included
    template: str = "{item_text}"  # text of an interaction; {item_text} and {item_id} are filled in
    max_text_tokens: PositiveInt = 32  # longer texts are cut at the end, and counted
    prefix: str = ""  # instruction that opens every prompt; empty: none


@dataclass(frozen=True)
class PackingConfig:
    """Histories to prompts, prompts to rows of constant length."""

    context: NonNegativeInt = 20  # n: interactions before the first target
    targets: PositiveInt | Literal["all"] = 50  # k: targets a streaming prompt; all: as many as a row holds
    row_length: Annotated[int, Range(16)] = 1024  # tokens; the longest single-target prompt must fit
    seed: NonNegativeInt = 7  # order of rows and of equal prompts
    max_targets: PositiveInt | None = None  # keep this many training targets, whole users by hash; null: all of them
