"""Row plans and token store to token arrays: the layout of a prompt, token by token, compiled by numba.

Whole-array operations of numpy are 2 to 3 times slower and keep the interpreter's lock (docs/benchmark.md, "Loader").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.packing import best_fit
from dti_pipeline.packing.compiled import compiled
from dti_pipeline.packing.layout import DTYPES, NO_DOCUMENT, Kind, Layout
from dti_pipeline.packing.prompts import Prompts
from dti_pipeline.packing.report import PackReport
from dti_pipeline.packing.store import TokenStore, read_columns

#: Rows whose targets are counted at a time.
CHUNK = 1 << 18


@dataclass(frozen=True)
class Rows:
    """The rows of one plan, assembled when asked for. ``r`` rows, ``p`` prompts.

    Memory: none but that of the plan's columns, which are memory-mapped where a plan was opened.
    """

    store: TokenStore
    row_length: int
    start: NDArray[Any]  # (p,) spans of the log, ordered by row
    first_target: NDArray[Any]
    stop: NDArray[Any]
    row: NDArray[Any]  # (p,) the row that each prompt is in, ascending; every row from 0 has one

    @classmethod
    def open(cls, store: TokenStore, folder: Path, plan: str) -> Rows:
        """A plan that ``dti pack`` made, memory-mapped."""
        report = artifacts.read(folder, "pack", PackReport).report
        columns = read_columns(folder / f"{plan}.arrow")
        spans = columns["start"], columns["first_target"], columns["stop"]
        return cls(store, report.row_length, *spans, columns["row"])

    @classmethod
    def pack(cls, store: TokenStore, prompts: Prompts, row_length: int, seed: int = 0) -> Rows:
        """Rows of ``prompts``, packed by best fit."""
        row = best_fit.pack(prompts.length, row_length, seed).row
        order = np.argsort(row, kind="stable")
        prompts = prompts.take(order)
        return cls(store, row_length, prompts.start, prompts.first_target, prompts.stop, row[order])

    def __len__(self) -> int:
        return int(self.row[-1]) + 1 if len(self.row) else 0

    def prompts(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First prompt of each of these rows, and the one behind its last. Cost: a binary search for each."""
        wanted = rows.astype(self.row.dtype)  # numbers of another type would have numpy copy the whole column
        return np.searchsorted(self.row, wanted), np.searchsorted(self.row, wanted, side="right")

    def targets(self, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Targets in each of these rows, or (r,) in each of the plan's."""
        rows = np.arange(len(self)) if rows is None else rows
        found = np.empty(len(rows), np.int64)
        _count(*self.prompts(rows), self.first_target, self.stop, found)
        return found

    def targets_in_chunks(self) -> Iterator[NDArray[np.int64]]:
        """Targets in each row of the plan, some rows at a time. Cost: one read of the plan."""
        for first in range(0, len(self), CHUNK):
            yield self.targets(np.arange(first, min(first + CHUNK, len(self))))

    @cached_property
    def most_targets(self) -> int:
        """Targets of the row that has the most. Cost: one read of the plan."""
        return max((int(counts.max()) for counts in self.targets_in_chunks()), default=0)

    def first(self, targets: int) -> int:
        """So many of the plan's first rows hold ``targets`` targets at most. Cost: a read of those rows."""
        rows = 0
        for counts in self.targets_in_chunks():
            fit = int((counts.cumsum() <= targets).sum())
            rows, targets = rows + fit, targets - int(counts.sum())
            if fit < len(counts):
                break
        return rows

    def height(self, tokens: int) -> int:
        """Rows of a batch of at most ``tokens`` tokens (one row at least)."""
        return max(1, tokens // self.row_length)

    def assemble(self, rows: NDArray[np.int64], height: int = 0) -> Layout:
        """Layout of the named rows, (len(rows), row_length), padded to ``height`` rows.

        Cost: O(tokens), without the interpreter's lock; compiled when first used, and cached. Raises IndexError for
        rows that the plan has not, and for prompts that do not fit.
        """
        store, special = self.store, self.store.special
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a plan of {len(self)}")
        shape = (max(len(rows), height), self.row_length)
        layout = Layout(**{name: np.empty(shape, dtype) for name, dtype in DTYPES.items()})
        _write(
            *self.prompts(rows), self.start, self.first_target, self.stop,
            store.position, store.seen, store.known,
            store.text, store.label, store.offsets, store.tokens, store.prefix, store.user_text,
            (special["no"], special["yes"], special["sum"], special["pad"]), KINDS,
            (layout.token, layout.document, layout.interaction, layout.kind, layout.position, layout.target),
            (layout.seen, layout.known),
        )  # fmt: skip
        return layout


#: Arguments, since numba's cache is made anew when this file changes, but not when a file of its constants does.
KINDS = (int(Kind.TEXT), int(Kind.SUM), int(Kind.LABEL), int(Kind.PREFIX), int(Kind.PAD), int(NO_DOCUMENT))


@compiled
def _write(
    first_prompts: Any, end_prompts: Any, start: Any, first_target: Any, stop: Any,
    position_in_log: Any, seen_of: Any, known_of: Any,
    text: Any, label: Any, offsets: Any, tokens: Any, prefix: Any, user_text: Any,
    special: tuple[int, int, int, int], kinds: tuple[int, int, int, int, int, int],
    out: tuple[Any, Any, Any, Any, Any, Any], knowledge: tuple[Any, Any],
) -> None:  # fmt: skip
    """Write rows: prompts one behind the other, each the prefix, its user's text and its interactions, then padding; an
    interaction is its text, [SUM] if it is a target, its label."""
    no, yes, sum_token, pad = special
    text_kind, sum_kind, label_kind, prefix_kind, pad_kind, no_document = kinds
    length = out[0].shape[1]
    token, document, interaction, kind, position, target = out
    seen, known = knowledge
    target[:] = -1
    seen[:] = 0
    known[:] = 0
    for row in range(len(token)):
        slot = 0
        first_prompt, end_prompt = 0, 0
        if row < len(first_prompts):
            first_prompt, end_prompt = first_prompts[row], end_prompts[row]
        for prompt in range(first_prompt, end_prompt):
            begin, first, end = start[prompt], first_target[prompt], stop[prompt]
            first_slot = slot
            user = tokens[:0]
            if len(user_text):
                user = tokens[offsets[user_text[first]] : offsets[user_text[first] + 1]]
            opening = len(prefix) + len(user)
            if slot + opening > length:
                raise IndexError("a prompt is longer than its row")
            for place in range(opening):
                token[row, slot] = prefix[place] if place < len(prefix) else user[place - len(prefix)]
                kind[row, slot] = prefix_kind
                position[row, slot] = place
                interaction[row, slot] = -1
                slot += 1
            # Rows between the last that any target sees and the first target have no part in the prompt.
            history = end - 1 - position_in_log[end - 1]
            context_end = min(first, history + seen_of[end - 1])
            behind = np.full(end - begin, opening, np.int32)  # the position behind each interaction
            for log_row in range(begin, end):
                if context_end <= log_row < first:
                    continue
                here = slot
                item = text[log_row]
                is_target = log_row >= first
                if slot + offsets[item + 1] - offsets[item] + is_target >= length:
                    raise IndexError("a prompt is longer than its row")
                in_context = max(0, history + seen_of[log_row] - begin)
                place = behind[in_context - 1] if in_context else opening
                for word in tokens[offsets[item] : offsets[item + 1]]:
                    token[row, slot] = word
                    kind[row, slot] = text_kind
                    position[row, slot] = place
                    slot += 1
                    place += 1
                if is_target:
                    token[row, slot] = sum_token
                    kind[row, slot] = sum_kind
                    position[row, slot] = place  # where the label will stand
                    target[row, slot] = log_row
                    slot += 1
                token[row, slot] = yes if label[log_row] == 1 else no
                kind[row, slot] = label_kind
                position[row, slot] = place
                slot += 1
                behind[log_row - begin] = place + 1
                interaction[row, here:slot] = log_row - begin
                seen[row, here:slot] = in_context
                known[row, here:slot] = max(0, history + known_of[log_row] - begin)
            document[row, first_slot:slot] = prompt - first_prompt
        token[row, slot:] = pad
        document[row, slot:] = no_document
        interaction[row, slot:] = -1
        kind[row, slot:] = pad_kind
        position[row, slot:] = 0


@compiled
def _count(first_prompts: Any, end_prompts: Any, first_target: Any, stop: Any, out: Any) -> None:
    """Targets in prompts [first, end) of each row."""
    for row in range(len(out)):
        targets = 0
        for prompt in range(first_prompts[row], end_prompts[row]):
            targets += stop[prompt] - first_target[prompt]
        out[row] = targets


def split(rows: NDArray[np.int64], height: int) -> list[NDArray[np.int64]]:
    """The named rows in batches of ``height``; the last may have fewer."""
    return [rows[i : i + height] for i in range(0, len(rows), height)]
