"""Proof 3: what a target may not see does not change it, forward (to the last bit) or backward (gradients exactly 0).

What it may see, through any path of layers, is worked out by the oracle with plain loops. One test changes tokens, a
second asks for gradients at all of them; others say the same in the log's words: a label, a text, a prefix.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import names
from tests.model import oracle
from tests.model.conftest import VOCABULARY, Log, histories, small_model, user_texts
from tests.model.test_layout_against_oracle import oracle_tokens

PREFIX = (9, 8)
logs = st.builds(Log.random, **{**histories, "text": st.integers(1, 3), "longest": st.integers(3, 9)})
logs |= st.builds(Log.random, prefix=st.just(PREFIX), user=user_texts, **{**histories, "longest": st.integers(3, 6)})
#: (summaries, sum_position, forgetting)
NETWORKS = [
    ("plain", "rope", "none"),
    ("pooled", "rope", "none"),
    ("plain", "nope_alibi", "linear"),
    ("pooled", "rope_alibi", "quadratic"),
]
networks = pytest.mark.parametrize(("summaries", "position", "forgetting"), NETWORKS)


def network(paradigm: str, n: int, layers: int, log: Log, summaries: str, position: str, forgetting: str) -> CTRModel:
    return small_model(
        paradigm, n, layers=layers, prefix=log.store.longest_opening, summaries=summaries, sum_position=position,
        forgetting=forgetting, forgetting_max=0.9,
    )  # fmt: skip


def reach_of_targets(batch: Batch, paradigm: str, n: int, layers: int, pooled: bool) -> torch.Tensor:
    """(T, rows * L): which slots each target may depend on, from the oracle, prompt by prompt."""
    length = batch.kind.shape[1]
    found = {}
    for r in range(batch.kind.shape[0]):
        filled = batch.kind[r] != Kind.PAD
        for document in batch.document[r][filled].unique():
            slots = ((batch.document[r] == document) & filled).nonzero().flatten().tolist()
            tokens = oracle_tokens(batch, r, slots)
            for q, reach in enumerate(oracle.reaches(paradigm, n, tokens, layers, pooled)):
                found[r * length + slots[q]] = [r * length + slots[k] for k in reach]
    mask = torch.zeros(len(batch.sum_index), batch.kind.numel(), dtype=torch.bool)
    for t, index in enumerate(batch.sum_index.tolist()):
        mask[t, found[index]] = True
    return mask


def logits(model: CTRModel, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch)


@pytest.mark.parametrize("paradigm", names())
@networks
@given(log=logs, n=st.integers(0, 3), k=st.sampled_from([1, 3, None]), layers=st.integers(1, 3), data=st.data())
@settings(max_examples=5, deadline=None)
def test_gradients_are_zero_at_what_a_target_may_not_see_and_nowhere_else(
    paradigm: str, summaries: str, position: str, forgetting: str, log: Log, n: int, k: int | None, layers: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    batch = log.batch(n, k, row_length=96)
    model = network(paradigm, n, layers, log, summaries, position, forgetting)
    embedded: list[torch.Tensor] = []
    embeddings = decoder_of(model.lm).get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    out = model(batch)
    t = data.draw(st.integers(0, len(out) - 1))
    (gradient,) = torch.autograd.grad(out[t], embedded[0])
    touched = gradient.abs().sum(-1).flatten() != 0
    assert torch.equal(touched, reach_of_targets(batch, paradigm, n, layers, summaries == "pooled")[t])


@pytest.mark.parametrize("paradigm", names())
@networks
@given(log=logs, n=st.integers(0, 3), k=st.sampled_from([1, 3, None]), layers=st.integers(1, 3), data=st.data())
@settings(max_examples=5, deadline=None)
def test_another_token_changes_no_logit_that_may_not_see_it_by_a_single_bit(
    paradigm: str, summaries: str, position: str, forgetting: str, log: Log, n: int, k: int | None, layers: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    batch = log.batch(n, k, row_length=96)
    model = network(paradigm, n, layers, log, summaries, position, forgetting)
    slot = data.draw(st.integers(0, batch.token.numel() - 1))
    changed = batch.token.flatten().clone()
    changed[slot] = (changed[slot] + data.draw(st.integers(1, VOCABULARY - 1))) % VOCABULARY
    moved = logits(model, batch) != logits(model, dataclasses.replace(batch, token=changed.view_as(batch.token)))
    may = reach_of_targets(batch, paradigm, n, layers, summaries == "pooled")[:, slot]
    assert not (moved & ~may).any()


@pytest.mark.parametrize("paradigm", names())
def test_a_label_changes_later_targets_that_see_it_and_never_its_own(paradigm: str) -> None:
    n, layers = 2, 2
    log = Log.random(users=3, seed=4, shortest=9)
    model = network(paradigm, n, layers, log, "pooled", "rope", "none")
    batch = log.batch(n, None)
    row = 13  # of the second user
    before = logits(model, batch)
    log.store.label[row] ^= 1
    moved = set(batch.target[before != logits(model, log.batch(n, None))].tolist())
    user = np.cumsum(log.store.position == 0)
    later = [t for t in batch.target.tolist() if t > row and user[t] == user[row]]
    farthest = {"sliding_window": len(later), "dti_growing": len(later), "dti": n * layers, "dti_isolated": n}[paradigm]
    assert moved == set(later[:farthest])


@pytest.mark.parametrize("paradigm", names())
def test_a_text_changes_its_own_target_and_later_ones(paradigm: str) -> None:
    n = 2
    log = Log.random(users=3, seed=4, shortest=9)
    model = network(paradigm, n, 1, log, "plain", "rope", "none")
    batch = log.batch(n, None)
    row = 13
    before = logits(model, batch)
    log.store.tokens[log.store.offsets[row]] += 1
    moved = set(batch.target[before != logits(model, log.batch(n, None))].tolist())
    user = np.cumsum(log.store.position == 0)
    later = [t for t in batch.target.tolist() if t >= row and user[t] == user[row]]
    assert moved == set(later[: n + 1] if paradigm in ("dti", "dti_isolated") else later)


@pytest.mark.parametrize("paradigm", names())
def test_one_prompt_s_prefix_is_seen_by_all_of_it_and_by_no_other_prompt(paradigm: str) -> None:
    log = Log.random(users=4, seed=5, prefix=PREFIX)
    model = network(paradigm, 2, 2, log, "pooled", "rope", "none")
    batch = log.batch(2, 3)
    row, document = 0, 1
    token = batch.token.clone()
    token[row, (batch.document[row] == document) & (batch.kind[row] == Kind.PREFIX)] = 20
    moved = logits(model, batch) != logits(model, dataclasses.replace(batch, token=token))
    its_own = torch.zeros_like(batch.document, dtype=torch.bool)
    its_own[row] = batch.document[row] == document
    assert torch.equal(moved, its_own.flatten()[batch.sum_index])
    assert 0 < int(moved.sum()) < len(moved)


@pytest.mark.parametrize("paradigm", names())
def test_a_user_s_text_is_seen_by_all_of_the_user_s_prompts_and_by_no_others(paradigm: str) -> None:
    log = Log.random(users=4, seed=5, prefix=PREFIX, user=3)
    model = network(paradigm, 2, 2, log, "plain", "rope", "none")
    before, batch = logits(model, log.batch(2, 3)), log.batch(2, 3)
    user = next(row for row in np.flatnonzero(log.store.position == 0) if log.store.opening()[row] > len(PREFIX))
    log.store.tokens[log.store.offsets[log.store.user_text[user]]] ^= 1
    moved = set(batch.target[logits(model, log.batch(2, 3)) != before].tolist())
    its_own = log.store.user_text == log.store.user_text[user]
    assert moved == {target for target in batch.target.tolist() if its_own[target]}
    assert 0 < len(moved) < len(batch.target)


def test_a_prompt_alone_in_its_row_has_the_logits_it_has_among_others() -> None:
    log = Log.random(users=6, seed=6)
    model = network("dti", 2, 2, log, "pooled", "rope", "none")
    rows = log.rows(2, 3, 256)
    single = dataclasses.replace(rows, row=np.arange(len(rows.start)))
    together, apart = log.batch_of(rows), log.batch_of(single)
    order, other = torch.argsort(together.target), torch.argsort(apart.target)
    torch.testing.assert_close(logits(model, together)[order], logits(model, apart)[other], atol=1e-5, rtol=0)
