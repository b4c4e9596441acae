"""Proof 2: in a streaming prompt every target gets the logit of its own prompt, except for the paper's leak.

``dti_isolated``: its own prompt is the sliding window, n interactions and the target. ``dti_growing``: its own prompt
begins where the streaming prompt begins. ``dti``: equal with one layer; with more the leak is real, and is measured.

An instruction prefix, or a user's text, stands right before a prompt's first interaction. In ``dti_growing`` it stands
there in the target's own prompt too, so the equality holds with a prefix. In ``dti_isolated`` it is further from a
streaming prompt's later targets than from the target in its own prompt, so the equality holds without a prefix only
(and for targets whose own prompt begins where the streaming prompt does).
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.conftest import (
    TOLERANCE,
    Log,
    alone,
    differences,
    histories,
    logits_by_target,
    small_model,
    user_texts,
)

POSITIONS = ("rope", "rope_alibi", "nope_alibi")
FIXES = list(itertools.product(POSITIONS, ("none", "linear", "square_root")))
histories = {**histories, "late": st.sampled_from(["", "shown"])}
logs = st.builds(Log.random, **histories)
context = st.integers(0, 5)
targets = st.sampled_from([2, 3, 5, None])
shape = st.fixed_dictionaries(
    {"seed": st.integers(0, 100), "kv_heads": st.sampled_from([1, 2, 4]), "layers": st.integers(2, 4)}
)


@pytest.mark.parametrize(("position", "forgetting"), FIXES)
@pytest.mark.parametrize("summaries", ["plain", "pooled"])
@given(log=logs, context=context, k=targets, shape=shape)
@settings(max_examples=10, deadline=None)
def test_isolated_targets_get_their_sliding_window_s_logit(
    position: str, forgetting: str, summaries: str, log: Log, context: int, k: int | None, shape: dict[str, int]
) -> None:
    model = small_model(
        "dti_isolated", context, sum_position=position, forgetting=forgetting, summaries=summaries, **shape
    )
    streaming, own = (logits_by_target(model, log.batch(context, targets)) for targets in (k, 1))
    assert max(differences(streaming, own).values()) < TOLERANCE


@pytest.mark.parametrize(("position", "forgetting"), FIXES)
@pytest.mark.parametrize("prefix", [(), (9, 8, 7)], ids=["bare", "prefix"])
@given(user=user_texts, log=st.fixed_dictionaries(histories), context=context, k=targets, shape=shape)
@settings(max_examples=10, deadline=None)
def test_growing_targets_get_the_logit_of_their_growing_context(
    position: str,
    forgetting: str,
    prefix: tuple[int, ...],
    user: int,
    log: dict,
    context: int,
    k: int | None,
    shape: dict,
) -> None:
    made = Log.random(prefix=prefix, user=user, **log)
    model = small_model(
        "dti_growing", context, prefix=made.store.longest_opening, sum_position=position, forgetting=forgetting, **shape
    )
    rows = made.rows(context, k, 256)
    streaming, own = (logits_by_target(model, made.batch_of(form)) for form in (rows, alone(rows)))
    assert max(differences(streaming, own).values()) < TOLERANCE


@pytest.mark.parametrize(("position", "forgetting"), FIXES)
@given(log=logs, context=context, k=targets, seed=st.integers(0, 100))
@settings(max_examples=10, deadline=None)
def test_a_single_layer_of_dti_does_not_leak(
    position: str, forgetting: str, log: Log, context: int, k: int | None, seed: int
) -> None:
    model = small_model("dti", context, layers=1, sum_position=position, forgetting=forgetting, seed=seed)
    streaming, own = (logits_by_target(model, log.batch(context, targets)) for targets in (k, 1))
    assert max(differences(streaming, own).values()) < TOLERANCE


@pytest.mark.parametrize("layers", [2, 3])
def test_more_layers_of_dti_leak_into_exactly_the_targets_with_older_history_in_their_prompt(layers: int) -> None:
    n = 3
    log = Log.random(users=6, seed=1, shortest=8, longest=14)
    model = small_model("dti", n, layers=layers)
    leak = differences(*(logits_by_target(model, log.batch(n, k)) for k in (None, 1)))
    has_older = {target: bool(log.store.position[target] > n) for target in leak}  # whole histories are one prompt
    assert all(leak[target] > 1e-3 for target in leak if has_older[target])
    assert all(leak[target] < TOLERANCE for target in leak if not has_older[target])


def mean_leak(seed: int, n: int, layers: int, **fixes: object) -> float:
    log = Log.random(users=6, seed=seed, shortest=10, longest=14)
    model = small_model("dti", n, layers=layers, seed=seed, **fixes)
    return float(np.mean(list(differences(*(logits_by_target(model, log.batch(n, k)) for k in (None, 1))).values())))


@pytest.mark.parametrize("layers", [2, 3])
def test_forgetting_shrinks_the_leak(layers: int) -> None:
    leaks = {
        family: np.array([mean_leak(seed, 4, layers, forgetting=family) for seed in range(6)])
        for family in ("none", "linear", "square_root")
    }
    assert leaks["linear"].mean() < 0.9 * leaks["none"].mean()
    # square_root forgets more at every distance than linear does.
    assert leaks["square_root"].mean() < leaks["linear"].mean()


def test_complete_forgetting_closes_the_only_way_a_two_layer_model_leaks() -> None:
    """With n = 1 and two layers, what lies two back reaches a [SUM] only through the state of the one before it, which
    is forgotten altogether at a(n) = 1."""
    forgets, remembers = (mean_leak(3, 1, 2, forgetting="linear", forgetting_max=most) for most in (1.0, 0.5))
    assert forgets < TOLERANCE
    assert remembers > 1e-3


def test_with_a_prefix_isolated_targets_are_equal_where_their_prompt_begins_alike() -> None:
    n = 3
    log = Log.random(users=5, seed=2, shortest=8, prefix=(9, 8, 7))
    model = small_model("dti_isolated", n, prefix=3)
    rows = log.rows(n, 4, 256)
    begins = {t: int(s) for s, a, b in zip(rows.start, rows.first_target, rows.stop, strict=True) for t in range(a, b)}
    apart = differences(logits_by_target(model, log.batch_of(rows)), logits_by_target(model, log.batch(n, 1)))
    own_begins = {target: target - min(n, int(log.store.position[target])) for target in apart}
    assert max(apart[t] for t in apart if begins[t] == own_begins[t]) < TOLERANCE
    assert min(apart[t] for t in apart if begins[t] != own_begins[t]) > TOLERANCE
