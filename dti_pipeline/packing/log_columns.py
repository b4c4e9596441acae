"""The log as columns of numbers, read in spans of whole users, each a task: texts are told apart, none is made yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dti_pipeline.config import Config, TokensConfig
from dti_pipeline.errors import InputError
from dti_pipeline.events.spans import ROWS, Span, batches, spans
from dti_pipeline.execution import tasks
from dti_pipeline.packing.store import CODES, read_columns, write_columns
from dti_pipeline.packing.user_texts import require_constant
from dti_pipeline.packing.values import Values, distinct
from dti_pipeline.packing.words import GAPS, gaps

NUMBERS = {"label": np.int8, "position": np.int32, "request": np.int32, "known": np.int32}


@dataclass(frozen=True)
class _Task:
    events: Path
    span: Span
    to: Path  # file of its columns
    config: TokensConfig
    context: str  # split.context


@dataclass(frozen=True)
class _Part:
    """A span's columns, and the values that they are codes of, as they first occur in it."""

    columns: Path  # kind (index into ``kinds``), split, label, position, request, known; user (index into ``users``)
    rows: int
    items: Values
    kinds: NDArray[np.int64]  # (k, 2) distinct pairs of an index into ``items`` and one into GAPS
    users: Values


@dataclass(frozen=True)
class Log:
    """The whole log: what its columns are codes of, and the parts that hold them."""

    items: Values  # id, text and the template's columns, as they first occur
    kinds: list[tuple[int, int]]  # pairs of an index into ``items`` and one into GAPS, ascending
    users: Values  # the columns of users, as they first occur
    _parts: Sequence[_Part]
    _kinds: Sequence[NDArray[np.int64]]  # of each part's kinds the index into ``kinds``
    _users: Sequence[NDArray[np.int64]]

    @classmethod
    def read(cls, events: Path, config: Config, folder: Path) -> Log:
        """Read the interactions, ordered by user; the columns lie in ``folder``, which has to stay. Cost: one read of
        the log. Memory: that of a span and the distinct values."""
        missing = set(config.tokens.published_columns).difference(pq.read_schema(events).names)
        for name in sorted(missing):
            key = config.tokens.key_of(name)
            raise InputError(
                f"params key `{key}` names {{{name}}}, which {events} does not have: run `dti ingest` again"
            )
        work = [
            _Task(events, span, folder / f"{number}.arrow", config.tokens, config.split.context)
            for number, span in enumerate(spans(events, ROWS))
        ]
        parts = tasks.run(_part, work, config.execution, "log in columns")
        items, places = _merged([part.items for part in parts])
        users, of_users = _merged([part.users for part in parts])
        pairs = [
            place[part.kinds[:, 0]] * len(GAPS) + part.kinds[:, 1] for part, place in zip(parts, places, strict=True)
        ]
        kinds = np.unique(np.concatenate(pairs))
        found = [divmod(pair, len(GAPS)) for pair in kinds.tolist()]
        return cls(items, found, users, parts, [np.searchsorted(kinds, pair) for pair in pairs], of_users)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self._parts)

    def columns(
        self, text_of_kind: NDArray[np.int32], text_of_user: NDArray[np.int32]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """The columns that a token store has, in parts: text, split, label, position, request, known and, where users
        have texts, user_text."""
        return (self._texts(number, text_of_kind, text_of_user) for number in self._numbers)

    def sum(self, of_kind: NDArray[np.int64]) -> int:
        """The sum over all rows of a number of each kind."""
        return sum(int(of_kind[self._kinds[number]] @ self._counts(number)) for number in self._numbers)

    def users_of(self, chosen: NDArray[np.bool_]) -> int:
        """How many users have chosen values (one bool for each of ``users``)."""
        found = 0
        for number in self._numbers:
            columns = read_columns(self._parts[number].columns)
            found += int(chosen[self._users[number]][columns["user"][columns["position"] == 0]].sum())
        return found

    @property
    def _numbers(self) -> range:
        return range(len(self._parts))

    def _counts(self, number: int) -> NDArray[np.int64]:
        """Rows of each of a part's kinds."""
        kind = read_columns(self._parts[number].columns)["kind"]
        return np.bincount(kind, minlength=len(self._kinds[number]))

    def _texts(
        self, number: int, text_of_kind: NDArray[np.int32], text_of_user: NDArray[np.int32]
    ) -> dict[str, NDArray[Any]]:
        columns = read_columns(self._parts[number].columns)
        found = {"text": text_of_kind[self._kinds[number]][columns.pop("kind")]}
        user = columns.pop("user", None)
        found |= columns
        return found if user is None else {**found, "user_text": text_of_user[self._users[number]][user]}


def _part(task: _Task) -> _Part:
    config, span = task.config, task.span
    rows, gap = span.stop - span.first, "gap" in config.names
    of_items, of_users = ["item_id", "item_text", *config.columns], list(config.user_columns)
    coded = list(dict.fromkeys([*of_items, *of_users, "split"]))
    item, user = np.empty(rows, np.int32), np.empty(rows, np.int32)
    split = np.empty(rows, np.int8)
    log = {name: np.empty(rows, kind) for name, kind in NUMBERS.items()}
    times = np.empty(rows, np.int64)
    items: dict[tuple[str, ...], int] = {}
    users: dict[tuple[str, ...], int] = {}
    wanted = [*coded, *NUMBERS, *(["timestamp"] if gap else [])]
    for here, batch in batches(task.events, span, wanted, coded):
        item[here] = distinct([batch[name] for name in of_items], items)
        if of_users:
            user[here] = distinct([batch[name] for name in of_users], users)
        names = pc.index_in(batch["split"].dictionary, pa.array(CODES)).to_numpy()
        split[here] = names[batch["split"].indices.to_numpy()]
        for name in NUMBERS:
            log[name][here] = batch[name].to_numpy()
        if gap:
            if batch["timestamp"].null_count:
                raise InputError("the log has no timestamps, which {gap} in params key `tokens.template` needs")
            times[here] = batch["timestamp"].to_numpy()
    if of_users:
        require_constant(task.events, span.first, of_users, list(users), user, log["position"])
    pair = item.astype(np.int64) * len(GAPS) + (_gaps(log, times, task.context) if gap else 0)
    there = np.zeros(len(items) * len(GAPS), bool)
    there[pair] = True
    kind = (np.cumsum(there, dtype=np.int32) - 1)[pair]
    columns = {"kind": kind, "split": split, **log, **({"user": user} if of_users else {})}
    write_columns(task.to, columns)
    kinds = np.stack(np.divmod(np.flatnonzero(there), len(GAPS)), axis=1)
    return _Part(task.to, rows, list(items), kinds, list(users))


def _gaps(log: dict[str, np.ndarray], times: np.ndarray, context: str) -> np.ndarray:
    """(m,) index into GAPS of whole histories."""
    history = np.arange(len(times)) - log["position"]
    request = history + log["request"]
    opens = np.flatnonzero(request == np.arange(len(request)))
    # A request is made at its earliest time: a later one of its rows may tell what became of that row.
    made = np.minimum.reduceat(times, opens)[np.searchsorted(opens, request)]
    return gaps(made, log["request"] if context == "shown" else log["known"], history)


def _merged(parts: Sequence[Values]) -> tuple[Values, list[NDArray[np.int64]]]:
    """Values of several parts as one list, as they first occur, and each part's indices into it."""
    index: dict[tuple[str, ...], int] = {}
    places = [np.array([index.setdefault(one, len(index)) for one in part], np.int64) for part in parts]
    return list(index), places
