"""A log in which every interaction is equally long: to plan for a log that is not there, and to draw a prompt."""

from __future__ import annotations

import numpy as np

from dti_pipeline.packing.store import TokenStore

#: Of the store's one text; real stores take theirs from the tokenizer.
SPECIAL = {"pad": 0, "sum": 1, "yes": 2, "no": 3}


def uniform_store(users: int, interactions: int, tokens: int, train_share: float = 1.0) -> TokenStore:
    """``users`` histories of ``interactions`` rows of ``tokens`` tokens each (text and label; at least 2).

    The first ``train_share`` of each history is its training part, the rest is split evenly between validation and
    test. Nothing is read or written. Memory: 14 bytes a row.
    """
    rows = users * interactions
    position = np.tile(np.arange(interactions, dtype=np.int32), users)
    train = round(interactions * train_share)
    return TokenStore(
        tokens=np.full(tokens - 1, len(SPECIAL), np.int32),
        offsets=np.array([0, tokens - 1], np.int64),
        text=np.zeros(rows, np.int32),
        label=np.zeros(rows, np.int8),
        split=np.where(position < train, 0, np.where(position < (train + interactions + 1) // 2, 1, 2)).astype(np.int8),
        position=position,
        prefix=np.zeros(0, np.int32),
        special=SPECIAL,
    )
