"""Proof 6: shifting a whole prompt by any number of positions changes no logit.

In fp32 a rotary angle is rounded by one part in 2**24 of the position: 1e-5 holds for shifts up to 512, and the
difference grows in proportion beyond that. Positions begin at 0 in every prompt, so none is ever so large.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.modeling.attention.distance import rotate, unrotate
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import names
from tests.model.conftest import TOLERANCE, Log, differences, histories, logits_by_target, small_model, user_texts

logs = st.builds(Log.random, prefix=st.sampled_from([(), (9, 8)]), user=user_texts, **histories)


@pytest.mark.parametrize("paradigm", names())
@pytest.mark.parametrize("position", ["rope", "rope_alibi", "nope_alibi"])
@given(log=logs, n=st.integers(0, 4), k=st.sampled_from([1, 3, None]), forgetting=st.sampled_from(["none", "linear"]),
       data=st.data())  # fmt: skip
@settings(max_examples=6, deadline=None)
def test_shifting_prompts_changes_no_logit(
    paradigm: str, position: str, log: Log, n: int, k: int | None, forgetting: str, data: st.DataObject
) -> None:
    """Every prompt of a batch by an amount of its own."""
    batch = log.batch(n, k)
    model = small_model(
        paradigm,
        n,
        prefix=log.store.longest_opening,
        sum_position=position,
        forgetting=forgetting,
    )
    prompts = int(batch.document[batch.kind != Kind.PAD].max()) + 1
    shift = torch.tensor(data.draw(st.lists(st.integers(0, 512), min_size=prompts, max_size=prompts)))
    moved = batch.position + shift[batch.document.long().clamp(max=prompts - 1)]
    apart = differences(
        logits_by_target(model, batch), logits_by_target(model, dataclasses.replace(batch, position=moved))
    )
    assert max(apart.values()) < TOLERANCE


def rotary(positions: torch.Tensor, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    frequency = 10_000 ** (-torch.arange(0, width, 2) / width)
    angle = (positions[:, None] * frequency).repeat(1, 2)[None]
    return angle.cos(), angle.sin()


def scores(shift: int, rotate_query: bool, rotate_keys: bool) -> torch.Tensor:
    """One query's scores against keys at earlier positions, all shifted."""
    draw = torch.Generator().manual_seed(0)
    query, keys = torch.randn(1, 1, 1, 16, generator=draw), torch.randn(1, 1, 30, 16, generator=draw)
    at = torch.arange(30) + shift
    if rotate_query:
        query = rotate(query, *rotary(at[-1:]))
    if rotate_keys:
        keys = rotate(keys, *rotary(at))
    return (query @ keys.transpose(2, 3)).flatten()


def test_the_trap_an_unrotated_query_against_rotated_keys_is_not_shift_invariant() -> None:
    """ "No position ids on [SUM]" taken literally: the reason why ``nope_alibi`` un-rotates keys as well."""
    apart = {
        (query, keys): float((scores(100, query, keys) - scores(0, query, keys)).abs().max())
        for query in (True, False)
        for keys in (True, False)
    }
    assert apart[True, True] < 1e-4
    assert apart[False, False] == 0
    assert apart[False, True] > 1
    assert apart[True, False] > 1


@given(seed=st.integers(0, 1000), shift=st.integers(0, 512))
@settings(max_examples=30, deadline=None)
def test_unrotating_undoes_rotating(seed: int, shift: int) -> None:
    x = torch.randn(2, 3, 10, 16, generator=torch.Generator().manual_seed(seed))
    cos, sin = (part.expand(2, -1, -1) for part in rotary(torch.arange(10) + shift))
    torch.testing.assert_close(unrotate(rotate(x, cos, sin), cos, sin), x, atol=TOLERANCE, rtol=0)
    scaled = rotate(x, 1.3 * cos, 1.3 * sin)  # YaRN multiplies both
    torch.testing.assert_close(unrotate(scaled, 1.3 * cos, 1.3 * sin), x, atol=TOLERANCE, rtol=0)


def test_where_a_sum_stands_matters_to_rope_and_not_to_nope() -> None:
    """The switch does something: a [SUM] moved away from its context keeps its scores only without positions."""
    log = Log.random(users=3, seed=8)
    batch = log.batch(3, 1)
    position = batch.position.clone()
    position.view(-1)[batch.sum_index] += 5
    moved = dataclasses.replace(batch, position=position)
    apart = {}
    for kind in ("rope", "rope_alibi", "nope_alibi"):
        model = small_model("sliding_window", 3, sum_position=kind)
        model.slopes.zero_()  # leaves rotation as the only knowledge of distance
        apart[kind] = max(differences(logits_by_target(model, batch), logits_by_target(model, moved)).values())
    assert apart["rope"] > 1e-3
    assert apart["rope_alibi"] > 1e-3
    assert apart["nope_alibi"] < TOLERANCE
