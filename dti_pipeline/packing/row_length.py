"""``packing.row_length: auto``: the row length in which a log's streaming prompts take the fewest tokens, padding
included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from dti_pipeline.config import Config
from dti_pipeline.errors import InputError
from dti_pipeline.events.published import SPLITS
from dti_pipeline.packing import best_fit, prompts
from dti_pipeline.packing.store import TokenStore

#: Share of padding above which a better row length is named.
PADDED = 0.05
#: A longer row must save this share of the tokens.
WORTH = 0.01
#: Shortest and longest row that is tried, in tokens; four lengths are tried up to each doubling.
SHORTEST, LONGEST = 256, 8192
#: Rows of the log, of its first users, that are packed for it.
SAMPLE = 1 << 18


@dataclass(frozen=True)
class Tried:
    """Rows of one length."""

    row_length: int
    tokens: int  # padding included
    padding_share: float
    cut: int  # prompts that a full row has ended early

    def advice(self, padding_share: float) -> str:
        """That this is better than rows of which ``padding_share`` is padding."""
        return (
            f"{padding_share:.0%} of the rows is padding: with packing.row_length = {self.row_length} it would be"
            f" {self.padding_share:.1%}; auto chooses that"
        )


def settled(config: Config, store: TokenStore) -> Config:
    """``config`` with a number for ``packing.row_length``, the same for every paradigm: short prompts waste little in
    any row. Cost: up to four packings of a sample for each doubling of the length."""
    if config.packing.row_length != "auto":
        return config
    return replace(config, packing=replace(config.packing, row_length=best(config, store).row_length))


def better(config: Config, store: TokenStore, padding_share: float) -> Tried | None:
    """The best row length, where ``padding_share`` is much and that of the best is less; else None."""
    if padding_share <= PADDED:
        return None
    found = best(config, store)
    return found if found.padding_share < padding_share - WORTH else None


def best(config: Config, store: TokenStore) -> Tried:
    """The shortest row length with hardly more tokens than any other. Raises InputError where a prompt of one
    target fits none."""
    tried: list[Tried] = []
    refusal: InputError | None = None
    sample = store.first(_end_of_sample(store.position))
    targets = (sample.split == SPLITS.index("train")) & (sample.request >= config.split.min_history)
    for length in _lengths():
        try:
            tried.append(_try(config, sample, targets, length))
        except InputError as error:  # which a longer row may mend
            refusal = error
            continue
        if tried[-1].padding_share < WORTH and not tried[-1].cut:
            break
    if refusal is not None and not tried:
        raise refusal
    least = min(one.tokens for one in tried)
    return next(one for one in tried if one.tokens * (1 - WORTH) <= least)


def _try(config: Config, sample: TokenStore, targets: np.ndarray, length: int) -> Tried:
    packing = config.packing
    found, cut = prompts.cut(
        targets, sample.position, sample.seen, sample.lengths(), packing.context,
        None if packing.targets == "all" else packing.targets, length, sample.opening(),
    )  # fmt: skip
    tokens = best_fit.pack(found.length, length, packing.seed).rows * length
    return Tried(length, tokens, round(1 - int(found.length.sum()) / max(tokens, 1), 6), cut)


def _lengths() -> Iterator[int]:
    """Ascending, in multiples of 64."""
    length = SHORTEST
    while length < LONGEST:
        yield from range(length, 2 * length, length // 4)
        length *= 2
    yield LONGEST


def _end_of_sample(position: np.ndarray) -> int:
    """Rows of the log that are packed: whole histories."""
    opens = np.flatnonzero(position[SAMPLE:] == 0)
    return SAMPLE + int(opens[0]) if len(opens) else len(position)
