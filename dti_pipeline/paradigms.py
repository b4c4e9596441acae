"""The attention paradigms as values: how far tokens see, how prompts are cut, how plots draw them.

No other code compares their names: a new paradigm is one entry of :data:`PARADIGMS`.

    paradigm         a text or label token of interaction i sees   [SUM] of target i sees
    sliding_window   everything before it in its prompt            the same
    dti              interactions i-n .. i                         interactions i-n .. i
    dti_growing      everything before it in its prompt            the same
    dti_isolated     its own interaction                           interactions i-n .. i
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from dti_pipeline.errors import InputError
from dti_pipeline.plain import nearest


class Reach(Enum):
    """How far back a token of interaction i sees, causally and within its own prompt."""

    ITEM = "its own interaction"
    WINDOW = "interactions i-n .. i"
    PROMPT = "everything before it in its prompt"


@dataclass(frozen=True)
class Style:
    """How plots draw a paradigm: colours of Okabe and Ito's palette, told apart in grey by line, marker and hatch."""

    colour: str
    line: str | tuple[int, tuple[int, ...]]
    marker: str
    hatch: str


@dataclass(frozen=True)
class Paradigm:
    """One way to cut histories into prompts and to let their tokens see each other."""

    name: str
    text: Reach  # of text and label tokens
    sums: Reach  # of [SUM] tokens
    streams: bool  # training prompts hold many targets; else one
    style: Style

    def __str__(self) -> str:
        return self.name

    @property
    def items_stand_alone(self) -> bool:
        """Whether an item's states depend on the item alone, so that a server can keep them."""
        return self.text is Reach.ITEM

    def in_streams(self) -> Paradigm:
        """The paradigm in prompts of many targets: one of single targets sees n interactions back, as in its own."""
        return self if self.streams else replace(self, text=Reach.WINDOW, sums=Reach.WINDOW)

    def targets(self, wanted: int | None) -> int | None:
        """Targets of a training prompt where streaming prompts have ``wanted`` (None: as many as a row holds)."""
        return wanted if self.streams else 1


SLIDING_WINDOW = Paradigm(
    "sliding_window", Reach.PROMPT, Reach.PROMPT, streams=False, style=Style("#000000", "-", "o", "")
)
DTI = Paradigm("dti", Reach.WINDOW, Reach.WINDOW, streams=True, style=Style("#D55E00", "--", "s", "//"))
DTI_GROWING = Paradigm("dti_growing", Reach.PROMPT, Reach.PROMPT, streams=True, style=Style("#0072B2", "-.", "^", ".."))
DTI_ISOLATED = Paradigm("dti_isolated", Reach.ITEM, Reach.WINDOW, streams=True, style=Style("#009E73", ":", "D", "xx"))
#: In the order of tables: the baseline first.
PARADIGMS: tuple[Paradigm, ...] = (SLIDING_WINDOW, DTI, DTI_GROWING, DTI_ISOLATED)
#: What every other paradigm is compared with.
BASELINE = SLIDING_WINDOW


def names() -> tuple[str, ...]:
    return tuple(paradigm.name for paradigm in PARADIGMS)


def named(name: str) -> Paradigm:
    """The paradigm of that name. Raises InputError with the right name where one is near."""
    for paradigm in PARADIGMS:
        if paradigm.name == name:
            return paradigm
    raise InputError(f"unknown paradigm {name!r}: use one of {', '.join(names())}{nearest(name, names())}")
