"""Sections of params.yaml about tokens, prompts and packed rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Literal

from dti_pipeline.errors import InputError
from dti_pipeline.plain import NonNegativeInt, PositiveInt, Range, require


@dataclass(frozen=True)
class TokensConfig:
    """Item texts to tokens, once for every paradigm."""

    tokenizer: str | None = None  # a transformers tokenizer by name or path; null: train one on the item texts
    vocab_size: Annotated[int, Range(64)] = 4096  # of a trained tokenizer, special tokens included
    # Text of an interaction, its names in braces filled in: {item_text}; {item_id}; {gap}, the time since the last row
    # of its context, in words (first, same sitting, an hour, hours, a day, days, a week, weeks, months); any column of
    # the log, or else of its items, by its name: it must have been known before the click.
    template: str = "{item_text}"
    max_text_tokens: PositiveInt = 32  # longer texts are cut at the end, and counted
    prefix: str = ""  # instruction that opens every prompt; empty: none

    def __post_init__(self) -> None:
        try:
            parts = list(Formatter().parse(self.template))
        except ValueError as error:
            raise InputError(f"params key `tokens.template` is {self.template!r}: {error}") from error
        fields = [name for _, name, _, _ in parts if name is not None]
        require("" not in fields, "tokens.template", "text whose braces hold names", self.template)

    @property
    def names(self) -> tuple[str, ...]:
        """What the template fills in."""
        fields = [re.split(r"[.\[]", name)[0] for _, name, _, _ in Formatter().parse(self.template) if name]
        return tuple(dict.fromkeys(fields))

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of its names that are columns of the log or of its items."""
        return tuple(name for name in self.names if name not in ("item_text", "item_id", "gap"))


@dataclass(frozen=True)
class PackingConfig:
    """Histories to prompts, prompts to rows of constant length."""

    context: NonNegativeInt = 20  # n: interactions before the first target
    targets: PositiveInt | Literal["all"] = 50  # k: targets a streaming prompt; all: as many as a row holds
    row_length: Annotated[int, Range(16)] = 1024  # tokens; the longest single-target prompt must fit
    seed: NonNegativeInt = 7  # order of rows and of equal prompts
    max_targets: PositiveInt | None = None  # keep this many training targets, whole users by hash; null: all of them
