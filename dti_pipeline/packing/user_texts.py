"""The texts of users, which open their prompts: `tokens.user_template` filled in with columns of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dti_pipeline.config import TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.packing.values import BLOCK, distinct
from dti_pipeline.packing.words import filling_in, render_user


@dataclass(frozen=True)
class Users:
    """Each user's text."""

    texts: list[str]  # distinct, sorted: an empty one is the first
    of_row: NDArray[np.int32]  # (m,) index into ``texts``
    opens: NDArray[np.bool_]  # (m,) True on each user's first row

    def counts(self, offsets: NDArray[np.int64], cut: int) -> dict[str, int]:
        """What the report says of them, from where each text's tokens begin and how many were cut."""
        empty = self.texts.index("") if "" in self.texts else -1
        return {
            "user_texts": len(self.texts),
            "user_texts_cut": cut,
            "users_without_text": int((self.of_row[self.opens] == empty).sum()),
            "longest_user_text": int(np.diff(offsets).max()),
        }


def read(path: Path, config: TokensConfig, position: NDArray[np.int32]) -> Users | None:
    """The users of the interactions at ``path``, whose rows have this ``position`` (m,); None without a template.

    Raises InputError for a column that changes inside a user, and for a template that tells nothing of anybody. Memory:
    4 bytes a row and the distinct texts.
    """
    template, columns = config.user_template, config.user_columns
    if template is None:
        return None
    index: dict[tuple[str, ...], int] = {}
    of_row = np.empty(len(position), np.int32)
    end = 0
    with pq.ParquetFile(path, read_dictionary=list(columns)) as file:
        for batch in file.iter_batches(BLOCK, columns=list(columns)):
            here = slice(end, end := end + len(batch))
            of_row[here] = distinct([batch[name] for name in columns], index)
    values = list(index)
    changed = np.flatnonzero((position[1:] > 0) & (of_row[1:] != of_row[:-1]))
    if len(changed):
        raise _changes(path, int(changed[0]), columns, *(values[of_row[changed[0] + i]] for i in (0, 1)))
    with filling_in("tokens.user_template", template):
        rendered = [render_user(template, dict(zip(columns, one, strict=True))) for one in values]
    texts = sorted(set(rendered))
    if texts == [""]:
        raise InputError(f"params key `tokens.user_template` is {template!r}: no user has a value for it")
    place = {text: i for i, text in enumerate(texts)}
    return Users(texts, np.array([place[text] for text in rendered], np.int32)[of_row], position == 0)


def _changes(path: Path, row: int, columns: Sequence[str], one: Sequence[str], other: Sequence[str]) -> InputError:
    """That a column is not of the user: row ``row`` has values ``one``, the next row of the user ``other``."""
    user = pq.read_table(path, columns=["user_id"])["user_id"][row].as_py()
    name, was, then = next(x for x in zip(columns, one, other, strict=True) if x[1] != x[2])
    return InputError(
        f"params key `tokens.user_template` names {{{name}}}, which changes inside user {user!r}, from {was!r} to"
        f" {then!r}: a column of the user has one value"
    )
