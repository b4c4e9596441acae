"""The texts of users, which open their prompts: `tokens.user_template` filled in with columns of the log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dti_pipeline.errors import InputError
from dti_pipeline.packing.values import Values
from dti_pipeline.packing.words import filling_in, render_user


def rendered(template: str, columns: Sequence[str], values: Values) -> tuple[list[str], NDArray[np.int32]]:
    """Distinct texts, sorted, so that an empty one is the first, and the index of the text of each of ``values``.

    Raises InputError for a template that tells nothing of anybody.
    """
    with filling_in("tokens.user_template", template):
        found = [render_user(template, dict(zip(columns, one, strict=True))) for one in values]
    texts = sorted(set(found))
    if texts == [""]:
        raise InputError(f"params key `tokens.user_template` is {template!r}: no user has a value for it")
    place = {text: i for i, text in enumerate(texts)}
    return texts, np.array([place[text] for text in found], np.int32)


def require_constant(
    path: Path,
    first: int,
    columns: Sequence[str],
    values: Values,
    of_row: NDArray[np.int32],
    position: NDArray[np.int32],
) -> None:
    """Raise InputError for a column that changes inside a user: of the rows from ``first`` on of the interactions at
    ``path``, with index into ``values`` and ``position`` of each."""
    changed = np.flatnonzero((position[1:] > 0) & (of_row[1:] != of_row[:-1]))
    if len(changed):
        row = int(changed[0])
        raise _changes(path, first + row, columns, *(values[of_row[row + i]] for i in (0, 1)))


def _changes(path: Path, row: int, columns: Sequence[str], one: Sequence[str], other: Sequence[str]) -> InputError:
    """That a column is not of the user: row ``row`` has values ``one``, the next row of the user ``other``."""
    user = pq.read_table(path, columns=["user_id"])["user_id"][row].as_py()
    name, was, then = next(x for x in zip(columns, one, other, strict=True) if x[1] != x[2])
    return InputError(
        f"params key `tokens.user_template` names {{{name}}}, which changes inside user {user!r}, from {was!r} to"
        f" {then!r}: a column of the user has one value"
    )
