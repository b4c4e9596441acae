"""Layout of packed rows, token by token: whole prompts one after another, then padding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Kind(IntEnum):
    """Kind of a token."""

    TEXT = 0  # the item's text
    SUM = 1  # [SUM]: stands after a target's text, its hidden state predicts the click; nobody else sees it
    LABEL = 2  # what the user did: yes or no; after [SUM], so that a target never sees its own
    PREFIX = 3  # what opens a prompt: the instruction, then the user's text
    PAD = 4


#: Document of padding. Larger than any prompt's, so that (document, interaction) ascends along a row.
NO_DOCUMENT = np.int32(2**31 - 1)


@dataclass(frozen=True)
class Layout:
    """Arrays of shape (rows, row_length).

    ``[SUM]`` does not advance positions: it stands where the label will stand. Both follow the last text token. An
    interaction begins right behind the last one in its context, whether or not that one's label is known: the rows of
    a request stand side by side.
    """

    token: NDArray[np.int32]
    document: NDArray[np.int32]  # prompt within the row, from 0; NO_DOCUMENT on padding
    interaction: NDArray[np.int32]  # interaction within the prompt, from 0; -1 on the prefix and on padding
    kind: NDArray[np.int8]  # Kind
    position: NDArray[np.int32]  # within the prompt, from 0
    seen: NDArray[np.int32]  # interactions before this one are in the token's context; 0 on the prefix and on padding
    known: NDArray[np.int32]  # labels of interactions before this one are known to it; at most ``seen``
    target: NDArray[np.int64]  # on [SUM]: row of the log that it predicts; -1 elsewhere


#: Types of a layout's arrays.
DTYPES = {
    "token": np.int32,
    "document": np.int32,
    "interaction": np.int32,
    "kind": np.int8,
    "position": np.int32,
    "seen": np.int32,
    "known": np.int32,
    "target": np.int64,
}
