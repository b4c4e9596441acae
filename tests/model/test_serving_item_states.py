"""Scores from cached item states equal the scores of whole prompts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.packing.reader import Rows
from dti_pipeline.serving import item_states
from dti_pipeline.serving.item_states import ItemStates
from tests.model.conftest import Log, small_model
from tests.model.serving_forms import asked, scores_of

CONTEXT = 4
CPU = torch.device("cpu")


@pytest.fixture
def log() -> Log:
    return Log.random(users=5, seed=3)


def isolated(**settings: Any) -> CTRModel:
    return small_model("dti_isolated", CONTEXT, layers=3, **settings)


def from_prompts(model: CTRModel, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    return score(model, rows, np.arange(len(rows)), 512, CPU)


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
    found = scores_of(ItemStates(model, CPU), rows.store, targets, CONTEXT)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize("late", ["shown", "known"])
def test_labels_that_are_not_told_are_not_read(late: str) -> None:
    model, log = isolated(), Log.random(users=6, seed=3, late=late)
    targets, expected = from_prompts(model, log.rows(CONTEXT, 1, 128))
    np.testing.assert_allclose(
        scores_of(ItemStates(model, CPU), log.store, targets, CONTEXT), expected, rtol=0, atol=1e-5
    )


def test_streaming_scores_come_from_the_same_states(log: Log) -> None:
    """Under dti_isolated a target's score does not depend on the form of its prompt, and neither on states."""
    model = isolated()
    streaming = dict(zip(*from_prompts(model, log.rows(CONTEXT, None, 256)), strict=True))
    targets = np.array(sorted(streaming))
    found = scores_of(ItemStates(model, CPU), log.store, targets, CONTEXT)
    np.testing.assert_allclose(found, [streaming[t] for t in targets], rtol=0, atol=1e-5)


def test_a_text_is_made_once_and_forgotten_where_there_are_too_many(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = ItemStates._make
    monkeypatch.setattr(ItemStates, "_make", lambda self, texts: made.append(len(texts)) or real(self, texts))
    model, store = isolated(), log.store
    targets, expected = from_prompts(model, log.rows(CONTEXT, 1, 128))
    states = ItemStates(model, CPU)
    half = len(store.offsets) // 2
    states.of(store.tokens[: store.offsets[half]], store.offsets[: half + 1], 20)
    for _ in range(2):
        np.testing.assert_allclose(scores_of(states, store, targets, CONTEXT), expected, rtol=0, atol=1e-5)
    assert sum(made) == len(states.index) == len({store.tokens[a:b].tobytes() for a, b in pairwise(store.offsets)})
    assert len(states.offsets) == sum(made) + 1
    few = ItemStates(model, CPU, most=3)
    for target, probability in zip(targets, expected, strict=True):
        rows = np.arange(max(target - store.position[target], target - CONTEXT), target + 1)
        offsets = np.append(0, np.cumsum(store.lengths()[rows] - 1))
        tokens = np.concatenate([store.tokens[store.offsets[t] : store.offsets[t + 1]] for t in store.text[rows]])
        state = np.zeros(len(store.offsets) - 1, np.int64)
        state[store.text[rows]] = few.of(tokens, offsets, 512)
        assert few.score([asked(store, state, int(target), CONTEXT)])[0] == pytest.approx(probability, abs=1e-5)
        assert len(few.index) <= CONTEXT + 1


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
