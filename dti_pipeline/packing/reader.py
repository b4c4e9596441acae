"""Row plans and token store to token arrays, vectorised.

Assembly is a gather: spans to interactions, interactions to tokens, each by one ``repeat`` and one ``arange``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.packing.layout import Kind, Layout, padding
from dti_pipeline.packing.store import TokenStore, read_columns


@dataclass(frozen=True)
class Rows:
    """The rows of one plan, assembled when asked for. ``r`` rows, ``p`` prompts."""

    store: TokenStore
    row_length: int
    start: NDArray[Any]  # (p,) spans of the log, ordered by row
    first_target: NDArray[Any]
    stop: NDArray[Any]
    bounds: NDArray[np.int64]  # (r + 1,) prompts of row i are [bounds[i], bounds[i + 1])

    @classmethod
    def open(cls, store: TokenStore, folder: Path, plan: str) -> Rows:
        """A plan that ``dti pack`` made, memory-mapped."""
        manifest = artifacts.read(folder, "pack")
        columns = read_columns(folder / f"{plan}.arrow")
        rows = manifest.report["plans"][plan]["rows"]
        return cls(
            store=store,
            row_length=manifest.report["row_length"],
            start=columns["start"],
            first_target=columns["first_target"],
            stop=columns["stop"],
            bounds=np.searchsorted(columns["row"], np.arange(rows + 1)),
        )

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def targets(self) -> NDArray[np.int64]:
        """(r,) targets in each row."""
        before = np.concatenate([[0], np.cumsum(self.stop - self.first_target)])
        return np.diff(before[self.bounds])

    def height(self, tokens: int) -> int:
        """Rows of a batch of at most ``tokens`` tokens (one row at least)."""
        return max(1, tokens // self.row_length)

    def split(self, rows: NDArray[np.int64], tokens: int) -> list[NDArray[np.int64]]:
        """The named rows in batches of at most ``tokens`` tokens (one row at least)."""
        size = self.height(tokens)
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def assemble(self, rows: NDArray[np.int64], height: int = 0) -> Layout:
        """Layout of the named rows, shape (len(rows), row_length); filled up to ``height`` rows with padding.

        Cost: O(tokens), about ten passes.
        """
        store = self.store
        layout = padding(max(len(rows), height), self.row_length, store.special["pad"])

        # Rows to prompts.
        per_row = self.bounds[rows + 1] - self.bounds[rows]
        prompt = _spans(self.bounds[rows], per_row)
        row_of_prompt = np.repeat(np.arange(len(rows)), per_row)
        document = _within(per_row)

        # Prompts to interactions.
        start = self.start[prompt]
        per_prompt = self.stop[prompt] - start
        log_row = _spans(start, per_prompt)
        interaction = _within(per_prompt)
        prompt_of = np.repeat(np.arange(len(prompt)), per_prompt)
        is_target = log_row >= self.first_target[prompt][prompt_of]
        text = store.text[log_row]
        text_start = store.offsets[text]
        text_length = store.offsets[text + 1] - text_start

        # Interactions to tokens: text, [SUM] if it is a target, label.
        per_interaction = text_length + is_target + 1
        of = np.repeat(np.arange(len(log_row)), per_interaction)
        offset = _within(per_interaction)
        past = offset - text_length[of]  # < 0 in the text
        is_label = past == is_target[of]
        is_sum = (past == 0) & ~is_label
        token = store.tokens[np.where(past < 0, text_start[of] + offset, 0)]
        token = np.where(is_sum, store.special["sum"], token)
        answer = np.where(store.label[log_row] == 1, store.special["yes"], store.special["no"])
        token = np.where(is_label, answer[of], token)

        # Where each token stands: prompts follow one another in a row, each opened by the prefix.
        prefix = len(store.prefix)
        per_prompt_tokens = np.bincount(prompt_of, per_interaction, len(prompt)).astype(np.int64) + prefix
        prompt_end = np.cumsum(per_prompt_tokens)
        prompt_start = prompt_end - per_prompt_tokens
        row_first = prompt_start[np.cumsum(per_row) - per_row]  # every row has a prompt
        slot = row_of_prompt * self.row_length + prompt_start - row_first[row_of_prompt]  # flat, of the prompt
        prompt_of_token = prompt_of[of]
        in_prompt = np.arange(len(of)) + prefix * (prompt_of_token + 1) - prompt_start[prompt_of_token]
        at = slot[prompt_of_token] + in_prompt
        sums_before = np.cumsum(is_sum) - is_sum
        first_token = prompt_start - prefix * np.arange(len(prompt))  # in the arrays without prefixes
        sums_before -= sums_before[first_token][prompt_of_token]

        layout.token.reshape(-1)[at] = token
        layout.document.reshape(-1)[at] = document[prompt_of_token]
        layout.interaction.reshape(-1)[at] = interaction[of]
        layout.kind.reshape(-1)[at] = np.where(is_sum, Kind.SUM, np.where(is_label, Kind.LABEL, Kind.TEXT))
        layout.position.reshape(-1)[at] = in_prompt - sums_before
        layout.target.reshape(-1)[at[is_sum]] = log_row[of[is_sum]]
        if prefix:
            at = (slot[:, None] + np.arange(prefix)).reshape(-1)
            layout.token.reshape(-1)[at] = np.tile(store.prefix, len(prompt))
            layout.document.reshape(-1)[at] = np.repeat(document, prefix)
            layout.kind.reshape(-1)[at] = Kind.PREFIX
            layout.position.reshape(-1)[at] = np.tile(np.arange(prefix), len(prompt))
        return layout


def _within(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, .. within each group of the given sizes, end to end."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _spans(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``starts[i] .. starts[i] + counts[i] - 1`` for each i, end to end."""
    return np.repeat(starts, counts) + _within(counts)
