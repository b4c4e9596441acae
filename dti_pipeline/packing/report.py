"""Reports of tokenizing and packing: counts of tokens, prompts and packed rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dti_pipeline.plain import OPTIONAL


@dataclass(frozen=True)
class Knowledge:
    """What a row of a log knows of the rows before it: the part of ``split`` that says so."""

    feedback_delay: float | None = None
    context: Literal["shown", "known"] = "shown"
    ties: Literal["together", "ordered"] = "together"
    whole_seconds: bool = True  # no time of the log has a fraction: a server's have none either


@dataclass(frozen=True)
class TokenizedLoad:
    """What one load added to a token store; the fields of the same names in its report."""

    key: str  # digest of all that it was made of
    interactions: int
    texts: int
    texts_cut: int
    tokens: int
    user_texts: int | None = field(default=None, metadata=OPTIONAL)
    user_texts_cut: int | None = field(default=None, metadata=OPTIONAL)
    users_without_text: int | None = field(default=None, metadata=OPTIONAL)
    longest_user_text: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class TokenizeReport:
    """A token store."""

    interactions: int  # those of earlier loads again that stand before a load's
    texts: int  # distinct in the log, or in each of its loads
    texts_cut: int  # longer than tokens.max_text_tokens
    tokens: int  # of all interactions: texts and labels
    tokens_per_interaction: float
    vocabulary: int  # V: token ids are below it
    special_tokens: dict[str, int]  # id by role: pad, sum, yes, no
    prefix_tokens: tuple[int, ...]  # that open every prompt
    knowledge: Knowledge
    # Of tokens.user_template, where there is one.
    user_texts: int | None = field(default=None, metadata=OPTIONAL)  # distinct
    user_texts_cut: int | None = field(default=None, metadata=OPTIONAL)
    users_without_text: int | None = field(default=None, metadata=OPTIONAL)  # no column of theirs has a value
    longest_user_text: int | None = field(default=None, metadata=OPTIONAL)  # tokens
    new_label_words: tuple[str, ...] = ()  # what stands for yes and no where the vocabulary has no word of one token
    loads: tuple[TokenizedLoad, ...] | None = field(default=None, metadata=OPTIONAL)  # None: a log without loads


@dataclass(frozen=True)
class PlanReport:
    """One plan of packed rows."""

    targets: int
    targets_in_log: int  # targets + dropped
    dropped: int
    dropped_reason: str | None
    targets_per_prompt: int | Literal["all"]  # k at most; all: as many as a row holds
    prompts: int
    prompts_cut_by_row: int  # closed before k targets, since the row was full
    rows: int
    tokens: int  # without padding
    tokens_per_target: float
    padding_share: float


@dataclass(frozen=True)
class PlanCounts:
    """What a plan has of some users; the sums are in its report."""

    targets: int
    targets_in_log: int
    prompts: int
    ended: int  # prompts that a full row has ended early
    rows: int
    tokens: int


@dataclass(frozen=True)
class PackedLoad:
    """What one load added to the plans of a paradigm."""

    key: str  # digest of all that it was made of
    plans: dict[str, PlanCounts]


@dataclass(frozen=True)
class PackReport(PlanReport):
    """The plans of one paradigm; the counts at the top are those of the training plan."""

    paradigm: str
    context: int  # interactions before the first target, n
    row_length: int  # tokens
    plans: dict[str, PlanReport]
    advice: str | None = None  # where another row length would have much less padding
    loads: tuple[PackedLoad, ...] | None = field(default=None, metadata=OPTIONAL)  # None: a log without loads
