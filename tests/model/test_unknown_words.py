"""Words of hidden and of rare items: what is replaced, when, and that a published model says the same without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dti_pipeline import artifacts
from dti_pipeline.config import ModelConfig
from dti_pipeline.modeling import ctr_model
from dti_pipeline.modeling.ctr_model import CTRModel, network_facts
from dti_pipeline.modeling.unknown_words import UnknownWords
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paths import PARADIGMS
from dti_pipeline.plain import to_plain
from tests.model.conftest import SPECIAL, VOCABULARY, Log, speaking

SHARED, RARE, PREFIX = 4, 39, 38
UNKNOWN = SPECIAL["pad"]
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "initial_std": 0.15}


def catalogue() -> Log:
    """Every text ends in one shared word, opens with one of 30 names; a rare word stands in held-out rows only."""
    draw = np.random.default_rng(3)
    histories = [[([int(draw.integers(5, 35)), SHARED], int(draw.integers(2))) for _ in range(12)] for _ in range(8)]
    for history in histories:
        history[-1] = ([RARE, SHARED], 1)
    log = Log.of(histories, prefix=(PREFIX,))
    split = np.zeros(len(log.store.split), np.int8)
    split[log.store.position == 11] = 2
    log.store = replace(log.store, split=split)
    return log


def words(store: TokenStore, **settings: float) -> UnknownWords:
    made = UnknownWords.of(ModelConfig(**settings), store)  # type: ignore[arg-type]
    assert made is not None
    return made


def test_counts_are_those_of_plain_loops() -> None:
    store = Log.random(users=5, seed=2).store
    store = replace(store, split=np.random.default_rng(0).integers(0, 3, len(store.split)).astype(np.int8))
    texts = [store.tokens[a:b].tolist() for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
    training = [texts[t] for t, s in zip(store.text, store.split, strict=True) if s == 0]
    assert store.text_counts().tolist() == [sum(token in text for text in texts) for token in range(VOCABULARY)]
    assert store.training_counts().tolist() == [
        sum(text.count(token) for text in training) for token in range(VOCABULARY)
    ]


def test_nothing_configured_or_pretrained_nothing_made() -> None:
    store = catalogue().store
    assert UnknownWords.of(ModelConfig(), store) is None
    assert UnknownWords.of(ModelConfig(name_or_path="llama", name_dropout=0.5), store) is None


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_training_hides_the_names_of_whole_interactions_and_of_nothing_else(paradigm: str) -> None:
    log = catalogue()
    batch = log.batch(4, 1 if paradigm == "sliding_window" else 5)
    hiding = words(log.store, name_dropout=0.4, name_texts=90)  # the shared word is in 96 texts
    torch.manual_seed(0)
    seen = hiding(batch.token, batch.kind)
    text = batch.kind == Kind.TEXT
    assert torch.equal(seen[~text], batch.token[~text]), "labels, [SUM]s and the prefix stay"
    assert torch.equal(seen == SHARED, batch.token == SHARED), "what many items share stays"
    name = text & (batch.token != SHARED)
    hidden = seen[name] == UNKNOWN
    assert torch.equal(seen[name][~hidden], batch.token[name][~hidden])
    share = hidden.float().mean()
    assert abs(share - 0.4) < 4 * (0.24 / len(hidden)) ** 0.5
    hiding.eval()
    assert torch.equal(hiding(batch.token, batch.kind), batch.token), "what is scored is the text itself"


def test_an_interaction_is_hidden_whole() -> None:
    log = Log.random(users=6, seed=1, text=6)
    batch = log.batch(4, 5)
    hiding = words(log.store, name_dropout=0.5, name_texts=10**6)
    seen = hiding(batch.token, batch.kind)
    key = torch.stack(
        [torch.arange(len(batch.token))[:, None].expand_as(batch.token), batch.document, batch.interaction]
    )
    text = batch.kind == Kind.TEXT
    by_interaction: dict[tuple[int, ...], set[bool]] = {}
    for where, hidden in zip(key[:, text].T.tolist(), (seen[text] == UNKNOWN).tolist(), strict=True):
        by_interaction.setdefault(tuple(where), set()).add(hidden)
    assert all(len(found) == 1 for found in by_interaction.values())
    assert {True, False} == {found for one in by_interaction.values() for found in one}


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_rare_words_are_one_word_in_training_scoring_and_the_published_model(paradigm: str, tmp_path: Path) -> None:
    log = catalogue()
    settings = ModelConfig(**SHAPE, min_token_count=2)
    torch.manual_seed(0)
    model = CTRModel(settings, paradigm, 4, VOCABULARY, 256, SPECIAL, prefix_length=1)
    model.unknown_words = words(log.store, min_token_count=2)
    speaking(model)
    batch = log.batch(4, 1 if paradigm == "sliding_window" else 5)
    unknown = replace(batch, token=torch.where(batch.token == RARE, UNKNOWN, batch.token))
    with torch.no_grad():
        logits = model(batch)[0]
        assert torch.equal(model(unknown)[0], logits)
    model(batch)[0].sum().backward()
    gradient = model.lm.get_input_embeddings().weight.grad
    assert not gradient[RARE].any()
    assert gradient[[UNKNOWN, PREFIX, *range(1, 5)]].abs().sum(1).all()

    with artifacts.publish(tmp_path / "model", "train", {"model": to_plain(settings)}, {}) as draft:
        model.save(draft.path)
        draft.report["network"] = network_facts(model, VOCABULARY, 256, SPECIAL, 1)
    published = ctr_model.load(tmp_path / "model")
    assert published.unknown_words is None
    with torch.no_grad():
        assert torch.equal(published(batch)[0], logits)
