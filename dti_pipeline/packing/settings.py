"""Sections of params.yaml about tokens, prompts and packed rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from string import Formatter
from typing import Annotated, Literal

from dti_pipeline.errors import InputError
from dti_pipeline.plain import OPTIONAL, NonNegativeInt, PositiveInt, Range, require

#: Names of a template that are no columns.
OF_ITEMS = ("item_text", "item_id", "gap")
#: Columns that are made of the log's labels: those known when a row was shown.
RATES = ("item_rate", "user_rate")


@dataclass(frozen=True)
class TokensConfig:
    """Item texts to tokens, once for every paradigm."""

    tokenizer: str | None = None  # a transformers tokenizer by name or path; null: train one on the item texts
    vocab_size: Annotated[int, Range(64)] = 4096  # of a trained tokenizer, special tokens included
    # Text of an interaction, its names in braces filled in: {item_text}; {item_id}; {gap}, the time since the last row
    # of its context, in words (first, same sitting, an hour, hours, a day, days, a week, weeks, months); {item_rate},
    # {user_rate}, a digit: tenths of clicks among the item's and the user's labels that were known by then; any column
    # of the log, or else of its items, by its name: it must have been known before the click, which nothing here can
    # tell. A request to the model has to give rates, and columns that vary for an item.
    template: str = "{item_text}"
    max_text_tokens: PositiveInt = 32  # longer texts, of items and of users, are cut at the end, and counted
    prefix: str = ""  # instruction that opens every prompt; empty: none
    # Text of a user, behind the prefix in each prompt of theirs: columns of the log, or else of its users, by name in
    # braces, "{age} {occupation}". Each has one value for a user, known before the first click, which nothing here can
    # tell. A request to the model has to give them. null: none.
    user_template: str | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        _check(self.template, "tokens.template")
        if self.user_template is not None:
            _check(self.user_template, "tokens.user_template")
            fits = self.user_columns and not {*self.user_columns} & {*OF_ITEMS, *RATES}
            require(bool(fits), "tokens.user_template", "text whose braces hold columns of a user", self.user_template)

    @property
    def names(self) -> tuple[str, ...]:
        """What the template fills in."""
        return _names(self.template)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of its names that are columns of the interactions: of the log, of its items, or rates."""
        return tuple(name for name in self.names if name not in OF_ITEMS)

    @property
    def rates(self) -> tuple[str, ...]:
        """Those of its names that are made of labels."""
        return tuple(name for name in self.names if name in RATES)

    @property
    def user_columns(self) -> tuple[str, ...]:
        """What the template of users fills in."""
        return () if self.user_template is None else _names(self.user_template)

    @property
    def read_columns(self) -> tuple[str, ...]:
        """All that is read of the log besides the canonical columns."""
        return tuple(name for name in dict.fromkeys([*self.columns, *self.user_columns]) if name not in RATES)

    @property
    def published_columns(self) -> tuple[str, ...]:
        """All that the interactions have besides the canonical columns, in their order."""
        return (*self.read_columns, *self.rates)

    def key_of(self, column: str) -> str:
        """The params key that names a column."""
        return "tokens.template" if column in self.columns else "tokens.user_template"


def _check(template: str, key: str) -> None:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"params key `{key}` is {template!r}: {error}") from error
    require("" not in [name for _, name, _, _ in parts], key, "text whose braces hold names", template)


def _names(template: str) -> tuple[str, ...]:
    fields = [re.split(r"[.\[]", name)[0] for _, name, _, _ in Formatter().parse(template) if name]
    return tuple(dict.fromkeys(fields))


@dataclass(frozen=True)
class PackingConfig:
    """Histories to prompts, prompts to rows of constant length."""

    context: NonNegativeInt = 20  # n: interactions before the first target
    targets: PositiveInt | Literal["all"] = 50  # k: targets a streaming prompt; all: as many as a row holds
    # Tokens of a row; the longest single-target prompt must fit. auto: the length in which the log's streaming prompts
    # take the fewest tokens, padding included, 8,192 at most.
    row_length: Annotated[int, Range(16)] | Literal["auto"] = 1024
    seed: NonNegativeInt = 7  # order of rows and of equal prompts
    # Share of the training targets to keep, in whole users drawn by packing.seed: the same for every paradigm and
    # training.seed, a smaller share being part of a larger one. Contexts are as they were.
    target_share: Annotated[float, Range(0, 1, "(]")] = 1.0
    max_targets: PositiveInt | None = None  # keep this many training targets, whole users by hash; null: all of them

    @property
    def tokens_a_row(self) -> int:
        """``row_length``, where it is a number: see :mod:`dti_pipeline.packing.row_length`."""
        assert self.row_length != "auto"
        return self.row_length
