"""Every token of every packed row, and every pair of tokens, against plain loops that use no code of the package."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.modeling.masks.visibility import dense, intervals, visible
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.packing import reader
from dti_pipeline.packing.compiled import compiled
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import named, names
from tests.model import oracle
from tests.model.conftest import SPECIAL, Log

KINDS = {Kind.TEXT: "text", Kind.SUM: "sum", Kind.LABEL: "label", Kind.PREFIX: "prefix"}

logs = st.builds(
    Log.random,
    users=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    longest=st.integers(3, 15),
    text=st.integers(1, 5),
    prefix=st.sampled_from([(), (9,), (9, 8, 7)]),
    late=st.sampled_from(["", "shown", "known"]),
    user=st.sampled_from([0, 4]),
)


def oracle_tokens(batch: Batch, row: int, slots: list[int]) -> list[oracle.Token]:
    """Tokens of a prompt as the oracle has them."""
    names = ("interaction", "seen", "known")
    return [
        {"kind": KINDS[Kind(int(batch.kind[row, s]))], **{name: int(getattr(batch, name)[row, s]) for name in names}}
        for s in slots
    ]


def expected_prompts(log: Log, context: int, k: int | None, min_history: int) -> dict[int, list[oracle.Token]]:
    """Every prompt's tokens by the log row of its first target, with rows of the log instead of the history's."""
    found = {}
    base = 0
    for history, (seen, known), prefix in zip(log.histories, log.knowledge(), log.openings(), strict=True):
        flags = [i >= min_history for i in range(len(history))]
        for first, stop in oracle.targets_of(flags, k, seen):
            tokens = oracle.prompt(history, first, stop, context, SPECIAL, prefix, seen, known)
            for token in tokens:
                token["row"] += base if token["row"] >= 0 else 0
            found[base + first] = tokens
        base += len(history)
    return found


@given(log=logs, context=st.integers(0, 6), k=st.sampled_from([1, 2, 3, 7, None]), min_history=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_rows_hold_exactly_the_prompts_of_the_oracle(log: Log, context: int, k: int | None, min_history: int) -> None:
    expected = expected_prompts(log, context, k, min_history)
    rows = log.rows(context, k, row_length=256, min_history=min_history)
    layout = rows.assemble(np.arange(len(rows)))
    found = {}
    for r in range(len(rows)):
        for document in np.unique(layout.document[r][layout.kind[r] != Kind.PAD]):
            slots = np.flatnonzero((layout.document[r] == document) & (layout.kind[r] != Kind.PAD))
            assert (np.diff(slots) == 1).all(), "a prompt is contiguous"
            tokens = [
                (
                    int(layout.token[r, s]),
                    KINDS[Kind(layout.kind[r, s])],
                    int(layout.interaction[r, s]),
                    int(layout.position[r, s]),
                    int(layout.seen[r, s]),
                    int(layout.known[r, s]),
                )
                for s in slots
            ]
            targets = layout.target[r, slots]
            found[int(targets[targets >= 0][0])] = (tokens, targets[targets >= 0].tolist())
    assert found.keys() == expected.keys()
    for first, tokens in expected.items():
        names = ("token", "kind", "interaction", "position", "seen", "known")
        assert found[first][0] == [tuple(token[name] for name in names) for token in tokens]
        assert found[first][1] == [t["row"] for t in tokens if t["kind"] == "sum"]


@pytest.mark.parametrize("paradigm", names())
@given(log=logs, context=st.integers(0, 5), k=st.sampled_from([1, 3, None]))
@settings(max_examples=25, deadline=None)
def test_masks_are_the_oracle_s_pair_by_pair(paradigm: str, log: Log, context: int, k: int | None) -> None:
    batch = log.batch(context, k, row_length=192)
    mask = visible(batch.tokens, named(paradigm), context)
    for r in range(batch.kind.shape[0]):
        expected = torch.eye(batch.kind.shape[1], dtype=torch.bool)
        for document in batch.document[r][batch.kind[r] != Kind.PAD].unique():
            slots = ((batch.document[r] == document) & (batch.kind[r] != Kind.PAD)).nonzero().flatten().tolist()
            tokens = oracle_tokens(batch, r, slots)
            for q in range(len(slots)):
                for k_ in range(len(slots)):
                    expected[slots[q], slots[k_]] = oracle.sees(paradigm, context, tokens, q, k_)
        assert torch.equal(mask[r], expected)


@pytest.mark.parametrize("paradigm", names())
@given(log=logs, context=st.integers(0, 6), k=st.sampled_from([1, 2, 5, None]))
@settings(max_examples=40, deadline=None)
def test_intervals_say_the_same_as_the_dense_mask(paradigm: str, log: Log, context: int, k: int | None) -> None:
    batch: Batch = log.batch(context, k, row_length=256)
    assert torch.equal(
        dense(intervals(batch.tokens, named(paradigm), context)), visible(batch.tokens, named(paradigm), context)
    )


def test_rows_are_the_same_from_memory_that_cannot_be_written_to_and_integers_of_any_size() -> None:
    """As from mapped files, as in serving, as a study names rows: each is other code to numba."""
    log = Log.random(users=9, seed=5, prefix=(9, 8), user=3)
    rows = log.rows(3, 4, 128)
    expected = rows.assemble(np.arange(len(rows)))

    def mapped(x: np.ndarray, dtype: Any = None) -> np.ndarray:
        x = x.astype(dtype or x.dtype)
        x.setflags(write=False)
        return x

    store = {name: mapped(getattr(log.store, name)) for name in ("tokens", "offsets", "text", "label", "user_text")}
    spans = {name: mapped(getattr(rows, name), np.int32) for name in ("start", "first_target", "stop")}
    same = dataclasses.replace(rows, store=dataclasses.replace(log.store, **store), **spans)
    for wanted in (np.arange(len(rows)), np.arange(2 * len(rows), dtype=np.int32)[: len(rows)]):
        found = same.assemble(wanted, len(rows) + 1)
        for name, array in vars(found).items():
            np.testing.assert_array_equal(array[:-1], getattr(expected, name))
        assert (found.kind[-1] == reader.Kind.PAD).all()


def test_rows_are_assembled_where_nothing_compiled_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an image whose user has no folder of his own."""
    caching = pytest.importorskip("numba.core.caching")

    def refuse(self: object) -> None:
        raise OSError("read-only file system")

    rows = Log.random(users=2, seed=5).rows(3, 4, 128)
    expected = rows.assemble(np.arange(len(rows)))
    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", refuse)
    monkeypatch.setattr(reader, "_write", compiled(reader._write.py_func))
    for name, array in vars(rows.assemble(np.arange(len(rows)))).items():
        np.testing.assert_array_equal(array, getattr(expected, name))


def test_what_is_not_in_the_plan_or_does_not_fit_is_an_error() -> None:
    """And no other memory is read or written: what is compiled checks nothing of itself."""
    rows = Log.random(users=9, seed=5).rows(3, 4, 128)
    for wanted in ([len(rows)], [-1]):
        with pytest.raises(IndexError, match="of a plan of"):
            rows.assemble(np.array(wanted))
    with pytest.raises(IndexError, match="longer than its row"):
        dataclasses.replace(rows, row_length=20).assemble(np.arange(len(rows)))
