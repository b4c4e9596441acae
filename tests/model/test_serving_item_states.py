"""Scores from cached item states equal the scores of whole prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.serving import item_states
from dti_pipeline.serving.item_states import ItemStates
from tests.model.conftest import Log, small_model

CONTEXT = 4
CPU = torch.device("cpu")


@pytest.fixture
def log() -> Log:
    return Log.random(users=5, seed=3)


def isolated(**settings: Any) -> CTRModel:
    return small_model("dti_isolated", CONTEXT, layers=3, **settings)


def from_prompts(model: CTRModel, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    return score(model, rows, np.arange(len(rows)), 512, CPU)


def histories(rows: Rows, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Text, label and whether it is the target, of the prompts of ``targets``, in order."""
    of = {stop - 1: range(start, stop) for start, stop in zip(rows.start, rows.stop, strict=True)}
    log_rows = np.concatenate([np.array(of[target]) for target in targets])
    return rows.store.text[log_rows], rows.store.label[log_rows], np.isin(log_rows, targets) & _last(of, targets)


def _last(of: dict[int, range], targets: np.ndarray) -> np.ndarray:
    return np.concatenate([np.arange(len(of[t])) == len(of[t]) - 1 for t in targets])


@pytest.mark.parametrize("sum_position", ["rope", "rope_alibi", "nope_alibi"])
@pytest.mark.parametrize("summaries", ["plain", "pooled"])
@pytest.mark.parametrize("head", ["fresh", "verbaliser"])
def test_scores_are_those_of_whole_prompts(
    log: Log, monkeypatch: pytest.MonkeyPatch, sum_position: str, summaries: str, head: str
) -> None:
    model = isolated(sum_position=sum_position, summaries=summaries, head=head)
    rows = log.rows(CONTEXT, 1, 128)
    targets, expected = from_prompts(model, rows)
    monkeypatch.setattr(item_states, "KEYS", 60)  # a few targets a pass
    states = ItemStates(model, CPU)
    states.add(rows.store, 512)
    np.testing.assert_allclose(states.score(*histories(rows, targets)), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def test_streaming_scores_come_from_the_same_states(log: Log) -> None:
    """Under dti_isolated a target's score does not depend on the form of its prompt, and neither on states."""
    model = isolated()
    rows = log.rows(CONTEXT, 1, 128)
    streaming = dict(zip(*from_prompts(model, log.rows(CONTEXT, None, 256)), strict=True))
    states = ItemStates(model, CPU)
    states.add(rows.store, 512)
    targets = np.array(sorted(streaming))
    kept = states.score(*histories(rows, targets))
    np.testing.assert_allclose(kept, [streaming[t] for t in targets], rtol=0, atol=1e-5)


def test_texts_added_later_get_states_of_their_own(log: Log) -> None:
    model = isolated()
    rows = log.rows(CONTEXT, 1, 128)
    targets, expected = from_prompts(model, rows)
    store = rows.store
    half = len(store.offsets) // 2

    def part(first: int, stop: int) -> TokenStore:
        tokens = store.tokens[store.offsets[first] : store.offsets[stop]]
        return replace(store, tokens=tokens, offsets=store.offsets[first : stop + 1] - store.offsets[first])

    states = ItemStates(model, CPU)
    states.add(part(0, half), 512)
    states.add(part(half, len(store.offsets) - 1), 512)
    np.testing.assert_allclose(states.score(*histories(rows, targets)), expected, rtol=0, atol=1e-5)


def test_a_target_alone_and_its_own_label_do_not_matter(log: Log) -> None:
    states = ItemStates(isolated(), CPU)
    states.add(log.store, 512)
    alone = [np.array([3]), np.array([0], np.int8), np.array([True])]
    assert states.score(*alone) == states.score(alone[0], np.array([1], np.int8), alone[2])
    context = [np.array([5, 3]), np.array([1, 0], np.int8), np.array([False, True])]
    assert abs(states.score(*context) - states.score(*alone)) > 1e-4
    assert states.score(*context) != states.score(context[0], np.array([0, 0], np.int8), context[2])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: small_model("dti", CONTEXT), "paradigm dti"),
        (lambda: isolated(prefix=3), "prefix"),
        (lambda: isolated(forgetting="linear"), "forgets"),
    ],
)
def test_models_whose_items_depend_on_histories_are_refused(model: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        ItemStates(model(), CPU)
