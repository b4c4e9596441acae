"""Tokens of the texts that requests name, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.packing.vocabulary import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Texts that are remembered; beyond it all are forgotten, and made anew as they come.
MOST = 1 << 16


class Texts:
    """Tokens of ``t`` texts, end to end. Indices are good until :meth:`forget`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_text_tokens: int) -> None:
        self._tokenizer, self._most_tokens = tokenizer, max_text_tokens
        self._index: dict[tuple[str, str], int] = {}
        self._tokens = np.empty(0, np.int32)  # with room for more
        self._offsets = np.zeros(1, np.int64)

    @property
    def tokens(self) -> NDArray[np.int32]:
        return self._tokens

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(t + 1,)."""
        return self._offsets[: len(self._index) + 1]

    def forget(self) -> bool:
        """Forget all where there are too many; whether it was done."""
        if len(self._index) <= MOST:
            return False
        self._index.clear()
        return True

    def of(self, texts: Sequence[str], kind: str = "item") -> NDArray[np.int64]:
        """Index of each text. Raises InputError for an item's of which the tokenizer makes nothing."""
        new = list(dict.fromkeys(text for text in texts if (kind, text) not in self._index))
        if new:
            tokens, offsets, _ = encode(self._tokenizer, new, self._most_tokens, kind)
            count, end = len(self._index), int(self.offsets[-1])
            self._tokens = _with(self._tokens, end, tokens)
            self._offsets = _with(self._offsets, count + 1, end + offsets[1:])
            self._index.update(((kind, text), count + i) for i, text in enumerate(new))
        return np.array([self._index[kind, text] for text in texts], np.int64)


def _with(x: NDArray[Any], end: int, more: NDArray[Any]) -> NDArray[Any]:
    """``x`` with ``more`` from ``end`` on; copied where its room has ended."""
    if end + len(more) > len(x):
        x = np.concatenate([x[:end], np.empty(max(end, len(more)), x.dtype)])
    x[end : end + len(more)] = more
    return x
