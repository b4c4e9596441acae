"""Row plans and token store to token arrays, vectorised.

Assembly is a gather: spans to interactions, interactions to tokens, each by one running sum and one ``arange``.
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
        return cls(
            store=store,
            row_length=manifest.report["row_length"],
            start=columns["start"],
            first_target=columns["first_target"],
            stop=columns["stop"],
            bounds=bounds(columns["row"]),
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

    def assemble(self, rows: NDArray[np.int64], height: int = 0) -> Layout:
        """Layout of the named rows, shape (len(rows), row_length); filled up to ``height`` rows with padding.

        Cost: O(tokens), some fifteen passes, none of which looks at what a token is.
        """
        store = self.store
        layout = padding(max(len(rows), height), self.row_length, store.special["pad"])

        # Rows to prompts.
        per_row = self.bounds[rows + 1] - self.bounds[rows]
        row_of_prompt = _owners(per_row)
        document = _within(per_row, row_of_prompt)
        prompt = self.bounds[rows][row_of_prompt] + document

        # Prompts to interactions.
        start = self.start[prompt]
        per_prompt = self.stop[prompt] - start
        of_prompt = _owners(per_prompt)
        interaction = _within(per_prompt, of_prompt)
        log_row = start[of_prompt] + interaction
        first = np.cumsum(per_prompt) - per_prompt  # interaction of each prompt
        is_target = log_row >= self.first_target[prompt][of_prompt]
        sums_before: NDArray[np.int64] = np.cumsum(is_target) - is_target
        sums_before -= sums_before[first][of_prompt]
        text = store.text[log_row]
        text_start = store.offsets[text]

        # Interactions to tokens: text, [SUM] if it is a target, label. In the places of the last two, what follows
        # the text in the store is read, and overwritten.
        per_interaction = store.offsets[text + 1] - text_start + is_target + 1
        end = np.cumsum(per_interaction)
        label_at, sum_at = end - 1, end[is_target] - 2
        owner = _owners(per_interaction)
        number = np.arange(len(owner))
        token = store.tokens.take(number + (text_start - (end - per_interaction)).take(owner), mode="clip")
        token[label_at] = np.where(store.label[log_row] == 1, store.special["yes"], store.special["no"])
        token[sum_at] = store.special["sum"]
        kind = np.full(len(number), Kind.TEXT, np.int8)
        kind[label_at] = Kind.LABEL
        kind[sum_at] = Kind.SUM

        # Where each token stands: prompts follow one another in a row, each opened by the prefix.
        prefix = len(store.prefix)
        size = np.add.reduceat(per_interaction, first)  # of each prompt, without its prefix
        prompt_start = np.cumsum(size + prefix) - (size + prefix)
        row_first = prompt_start[np.cumsum(per_row) - per_row]  # every row has a prompt
        slot = row_of_prompt * self.row_length + prompt_start - row_first[row_of_prompt]  # flat, of the prompt
        within = prefix - (np.cumsum(size) - size)  # of a token in its prompt, less its number
        at = number + (within + slot)[of_prompt].take(owner)
        position = number + (within[of_prompt] - sums_before).take(owner)
        position[sum_at + 1] -= 1  # a target's label: its [SUM] did not advance positions

        layout.token.reshape(-1)[at] = token
        layout.document.reshape(-1)[at] = document.astype(np.int32)[of_prompt].take(owner)
        layout.interaction.reshape(-1)[at] = interaction.astype(np.int32).take(owner)
        layout.kind.reshape(-1)[at] = kind
        layout.position.reshape(-1)[at] = position
        layout.target.reshape(-1)[at[sum_at]] = log_row[is_target]
        if prefix:
            at = (slot[:, None] + np.arange(prefix)).reshape(-1)
            layout.token.reshape(-1)[at] = np.tile(store.prefix, len(prompt))
            layout.document.reshape(-1)[at] = np.repeat(document, prefix)
            layout.kind.reshape(-1)[at] = Kind.PREFIX
            layout.position.reshape(-1)[at] = np.tile(np.arange(prefix), len(prompt))
        return layout


def bounds(row: NDArray[Any]) -> NDArray[np.int64]:
    """(r + 1,) first prompt of each row, and the end, from the row that each prompt (p,) is in, ascending."""
    return np.searchsorted(row, np.arange(row[-1] + 2 if len(row) else 1))


def split(rows: NDArray[np.int64], height: int) -> list[NDArray[np.int64]]:
    """The named rows in batches of ``height``; the last may have fewer."""
    return [rows[i : i + height] for i in range(0, len(rows), height)]


def _owners(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which group each element is of, for groups of the given sizes, end to end; none is empty.

    ``x[_owners(counts)]`` is ``np.repeat(x, counts)``, which keeps the interpreter's lock while it works: a thread that
    trains would wait for a thread that assembles, some 0.1 ms at each of its calls.
    """
    ends = np.cumsum(counts)
    begins = np.zeros(ends[-1] if len(ends) else 0, np.int64)
    begins[ends[:-1]] = 1
    return np.cumsum(begins)


def _within(counts: NDArray[np.int64], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, .. within each group of the given sizes, end to end; ``owner`` is :func:`_owners` of them."""
    return np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
