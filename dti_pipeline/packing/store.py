"""The token store: each item text tokenised once, the log as memory-mapped columns beside it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dti_pipeline import artifacts
from dti_pipeline.errors import InputError
from dti_pipeline.events.published import CONTEXT, SPLITS
from dti_pipeline.packing.report import TokenizeReport
from dti_pipeline.paths import Paths

#: What the numbers of the split column mean: a split, or a row that is no target, for those behind it.
CODES = (*SPLITS, CONTEXT)
#: The log's items by id, for whoever has only ids to score: columns item_id and item_text.
ITEMS = "items.parquet"
#: Of a uniform store's one text; real stores take theirs from the tokenizer.
SPECIAL = {"pad": 0, "sum": 1, "yes": 2, "no": 3}


@dataclass(frozen=True)
class TokenStore:
    """One log in tokens. ``m`` rows, ``t`` distinct texts; arrays are views of memory-mapped files."""

    tokens: NDArray[np.int32]  # all texts' tokens, end to end
    offsets: NDArray[np.int64]  # (t + 1,) where each text starts in ``tokens``
    text: NDArray[np.int32]  # (m,) text of each interaction
    label: NDArray[np.int8]  # (m,) 0 or 1
    split: NDArray[np.int8]  # (m,) index into CODES
    position: NDArray[np.int32]  # (m,) index within the user's history
    request: NDArray[np.int32]  # (m,) position of the first row of its request, whose rows know nothing of each other
    known: NDArray[np.int32]  # (m,) so many of the user's first rows have a label that is known to it; <= request
    prefix: NDArray[np.int32]  # tokens that open every prompt
    special: dict[str, int]  # token ids by role: pad, sum, yes, no
    vocabulary: int = 0  # V: ids are below it; 0: not known
    context: Literal["shown", "known"] = "shown"  # split.context
    #: (m,) text of each row's user, which follows the prefix in each prompt of theirs; (0,): users have none.
    user_text: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    new_label_words: tuple[str, ...] = ()  # label tokens that the tokenizer's vocabulary lacked

    @classmethod
    def open(cls, folder: Path, *, whole: bool = True) -> TokenStore:
        """Memory-map a store that ``dti tokenize`` made. Cost: one read, to check its digests; none where it is not
        to be ``whole``, since it was checked before."""
        report = artifacts.read(folder, "tokenize", TokenizeReport, whole=whole).report
        return cls(
            tokens=read_columns(folder / "texts.arrow")["token"],
            offsets=read_columns(folder / "offsets.arrow")["offset"],
            **read_columns(folder / "interactions.arrow"),
            prefix=np.asarray(report.prefix_tokens, np.int32),
            special=report.special_tokens,
            vocabulary=report.vocabulary,
            context=report.knowledge.context,
            new_label_words=report.new_label_words,
        )

    def first(self, rows: int) -> TokenStore:
        """The log's first rows, whole histories, as a store."""
        columns = ("text", "label", "split", "position", "request", "known", "user_text")
        return replace(self, **{name: getattr(self, name)[:rows] for name in columns})

    @property
    def seen(self) -> NDArray[np.int32]:
        """(m,) Rows of the user's history before this position stand in the row's context."""
        return in_context(self.context, self.request, self.known)

    def opening(self, rows: slice | NDArray[Any] = slice(None)) -> NDArray[np.int64]:
        """Tokens that open a prompt of each of these rows' users: the prefix and the user's text."""
        if not len(self.user_text):
            return np.broadcast_to(np.int64(len(self.prefix)), self.position[rows].shape)
        text = self.user_text[rows]
        return len(self.prefix) + self.offsets[text + 1] - self.offsets[text]

    @property
    def longest_opening(self) -> int:
        """Tokens that open a prompt, at most."""
        return int(self.opening().max(initial=0))

    def lengths(self, rows: slice | NDArray[Any] = slice(None)) -> NDArray[np.int32]:
        """Tokens of each of these interactions as context: its text and its label."""
        text = self.text[rows]
        return (self.offsets[text + 1] - self.offsets[text] + 1).astype(np.int32)


def in_context(context: str, request: NDArray[np.int32], known: NDArray[np.int32]) -> NDArray[np.int32]:
    """Rows of a history before this position stand in each row's context, by ``split.context``."""
    return request if context == "shown" else known


def require_events(paths: Paths) -> None:
    """Raise InputError where a home's tokens are of other events than it holds now. Cost: one read of the events."""
    made_of = artifacts.read(paths.tokens, "tokenize").inputs.get("events")
    if (paths.events / artifacts.MANIFEST).is_file():
        artifacts.read(paths.events, "ingest")  # a damaged file is named, before it makes them other events
    if paths.events.is_dir() and made_of not in (None, artifacts.folder_digest(paths.events)):
        raise InputError(f"{paths.tokens} is of other events than {paths.events} holds: run `dti tokenize` again")


def write_columns(path: Path, columns: dict[str, Any]) -> None:
    """Write equal-length arrays as one Arrow IPC batch: a single chunk, so that reading it maps instead of copying. The
    file is there as a whole or not at all: a task may be run twice."""
    batch = pa.record_batch([pa.array(values) for values in columns.values()], names=list(columns))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    aside.replace(path)


def write_parts(path: Path, rows: int, parts: Iterable[Mapping[str, NDArray[Any]]]) -> None:
    """Write the columns of several parts, one behind the other and ``rows`` rows in all, as :func:`write_columns`
    would. Memory: that of a part; what is put together lies in files beside ``path`` meanwhile."""
    whole: dict[str, NDArray[Any]] = {}
    end = 0
    with tempfile.TemporaryDirectory(prefix=".columns.", dir=path.parent) as beside:
        for part in parts:
            begin, end = end, end + len(next(iter(part.values())))
            if end - begin == rows:
                whole = dict(part)
                break
            for name, values in part.items():
                if name not in whole:
                    whole[name] = _mapped(Path(beside) / name, values.dtype, rows)
                whole[name][begin:end] = values
        write_columns(path, whole)


def _mapped(path: Path, kind: np.dtype[Any], rows: int) -> NDArray[Any]:
    """A column in a file. Its place on the disk is taken first: a full disk is an error here, and a crash later."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, rows * kind.itemsize)
    return np.memmap(path, kind, "r+", shape=(rows,))


def read_columns(path: Path) -> dict[str, NDArray[Any]]:
    """Memory-map what :func:`write_columns` wrote. Cost: nothing is read until it is used."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return {
        name: column.chunk(0).to_numpy(zero_copy_only=True) if column.num_chunks else column.to_numpy()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def uniform_store(users: int, interactions: int, tokens: int, train_share: float = 1.0) -> TokenStore:
    """A made-up log, to plan and to draw: ``users`` histories of ``interactions`` rows of ``tokens`` tokens (from 2).

    Each row is a request of its own and knows all labels before it. Rows after the first ``train_share`` of a history
    are half validation, half test. Memory: 14 bytes a row.
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
        request=position,
        known=position,
        prefix=np.zeros(0, np.int32),
        special=SPECIAL,
    )
