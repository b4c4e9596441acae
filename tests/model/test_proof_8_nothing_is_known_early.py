"""Proof 8: a label that a target does not know yet changes nothing of it, and neither do its request's other rows.

Forward to the last bit and backward with gradients of exactly 0, through any number of layers, for every paradigm and
both fixes. And a request's rows have, side by side in one prompt, the logits of a prompt for each.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import names
from tests.model.conftest import TOLERANCE, Log, alone, differences, logits_by_target, small_model

NETWORKS = pytest.mark.parametrize(
    ("summaries", "position", "forgetting"),
    [("plain", "rope", "none"), ("pooled", "rope_alibi", "quadratic"), ("plain", "nope_alibi", "linear")],
)
LATE = st.sampled_from(["shown", "known"])
layers = st.integers(1, 4)


def network(paradigm: str, n: int, layers: int, summaries: str, position: str, forgetting: str) -> CTRModel:
    return small_model(
        paradigm,
        n,
        layers=layers,
        summaries=summaries,
        sum_position=position,
        forgetting=forgetting,
        forgetting_max=0.9,
    )


def history_of(log: Log) -> np.ndarray:
    """First row of each row's user."""
    return np.arange(len(log.store.position)) - log.store.position


def targets_that_may_know(log: Log, row: int) -> set[int]:
    """Targets of the row's user that know its label."""
    first = history_of(log)
    return set(np.flatnonzero((first == first[row]) & (log.store.known > log.store.position[row])).tolist())


@pytest.mark.parametrize("paradigm", names())
@NETWORKS
@given(seed=st.integers(0, 10**6), late=LATE, n=st.integers(1, 4), k=st.sampled_from([1, 3, None]), layers=layers)
@settings(max_examples=6, deadline=None)
def test_a_label_changes_no_target_that_does_not_know_it(
    paradigm: str, summaries: str, position: str, forgetting: str, seed: int, late: str, n: int, k: int | None,
    layers: int,
) -> None:  # fmt: skip
    log = Log.random(users=2, seed=seed, longest=9, late=late)
    model = network(paradigm, n, layers, summaries, position, forgetting)
    before = logits_by_target(model, log.batch(n, k))
    for row in range(len(log.store.label)):
        log.store.label[row] ^= 1
        moved = {
            target for target, logit in logits_by_target(model, log.batch(n, k)).items() if logit != before[target]
        }
        log.store.label[row] ^= 1
        assert moved <= targets_that_may_know(log, row)


@pytest.mark.parametrize("paradigm", names())
@NETWORKS
@given(seed=st.integers(0, 10**6), late=LATE, n=st.integers(1, 4), k=st.sampled_from([1, 3, None]), layers=layers)
@settings(max_examples=4, deadline=None)
def test_gradients_of_what_a_target_does_not_know_are_zero(
    paradigm: str, summaries: str, position: str, forgetting: str, seed: int, late: str, n: int, k: int | None,
    layers: int,
) -> None:  # fmt: skip
    """Of labels unknown to it, and of all that its request's other rows have."""
    log = Log.random(users=2, seed=seed, longest=9, late=late)
    model = network(paradigm, n, layers, summaries, position, forgetting)
    rows = log.rows(n, k, 96)
    layout, batch = rows.assemble(np.arange(len(rows))), log.batch_of(rows)
    embedded: list[torch.Tensor] = []
    decoder_of(model.lm).get_input_embeddings().register_forward_hook(lambda _, inputs, out: embedded.append(out))
    logits = model(batch)
    for t in range(len(logits)):
        (gradient,) = torch.autograd.grad(logits[t], embedded[0], retain_graph=True)
        touched = gradient.abs().sum(-1).numpy() != 0
        at, slot = divmod(int(batch.sum_index[t]), layout.kind.shape[1])
        assert not touched[np.arange(len(touched)) != at].any()
        prompt = layout.document[at] == layout.document[at, slot]
        own, seen, known = (x[at, slot] for x in (layout.interaction, layout.seen, layout.known))
        other = layout.interaction[at] != own
        unknown = (layout.kind[at] == Kind.LABEL) & (layout.interaction[at] >= known)
        assert not touched[at][prompt & other & (unknown | (layout.interaction[at] >= seen))].any()
        assert not touched[at][~prompt].any()


@pytest.mark.parametrize("paradigm", names())
@NETWORKS
@given(seed=st.integers(0, 10**6), late=LATE, n=st.integers(0, 5), layers=layers)
@settings(max_examples=6, deadline=None)
def test_a_request_in_one_prompt_is_one_prompt_a_candidate(
    paradigm: str, summaries: str, position: str, forgetting: str, seed: int, late: str, n: int, layers: int
) -> None:
    log = Log.random(users=3, seed=seed, late=late)
    model = network(paradigm, n, layers, summaries, position, forgetting)
    rows = log.rows(n, 1, 256)
    assert (rows.stop - rows.first_target).max() >= 1
    together, apart = (logits_by_target(model, log.batch_of(form)) for form in (rows, alone(rows)))
    assert max(differences(together, apart).values()) < TOLERANCE


def test_the_order_of_a_request_s_rows_tells_nothing() -> None:
    """Rows of one request change places, with their labels: each keeps its logit."""
    texts = [[5, 6], [7], [8, 9, 10], [11, 12], [13]]
    late = [([0, 1, 2, 2, 2], [0, 1, 1, 1, 1])]
    one = Log.of([[(text, i % 2) for i, text in enumerate(texts)]], late=late)
    order = [0, 1, 4, 2, 3]
    other = Log.of([[(texts[i], i % 2) for i in order]], late=late)
    for paradigm in names():
        model = small_model(paradigm, 3, layers=3)
        found = [logits_by_target(model, log.batch(3, 1)) for log in (one, other)]
        for place, row in enumerate(order[1:], 1):
            assert abs(found[0][row] - found[1][place]) < TOLERANCE, paradigm


def test_a_known_label_does_change_its_targets() -> None:
    """The tests above could not fail if labels never mattered."""
    log = Log.random(users=1, seed=3, shortest=9, late="shown")
    model = small_model("dti", 9, layers=2)
    before = logits_by_target(model, log.batch(9, None))
    log.store.label[0] ^= 1
    moved = {target for target, logit in logits_by_target(model, log.batch(9, None)).items() if logit != before[target]}
    assert moved == targets_that_may_know(log, 0) & set(before)
    assert moved
