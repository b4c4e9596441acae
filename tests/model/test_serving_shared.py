"""Candidates that read their history's keys where they are have the scores of whole prompts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dti_pipeline.modeling.attention import shared
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.paradigms import names
from dti_pipeline.serving import forward
from tests.model.conftest import Log, small_model
from tests.model.serving_forms import prompt, texts

N = 4
CPU = torch.device("cpu")


@pytest.mark.parametrize("paradigm", names())
@pytest.mark.parametrize(
    ("late", "prefix", "user", "tokens"),
    [("", (), 0, 4096), ("shown", (), 0, 40), ("known", (9, 8), 0, 150), ("shown", (9,), 3, 4096)],
)
def test_scores_are_those_of_whole_prompts(
    monkeypatch: pytest.MonkeyPatch, paradigm: str, late: str, prefix: tuple[int, ...], user: int, tokens: int
) -> None:
    monkeypatch.setattr(shared, "SCORES", 60)  # a few sequences at a time
    log = Log.random(users=6, seed=5, late=late, prefix=prefix, user=user)
    store = log.store
    model = small_model(paradigm, N, layers=3, prefix=len(prefix) + user)
    rows = log.rows(N, 1, 256)
    targets, expected = score(model, rows, np.arange(len(rows)), 1024, CPU)
    requests = sorted(zip(rows.first_target.tolist(), rows.stop.tolist(), strict=True))
    assert not late or max(stop - first for first, stop in requests) > 1
    asked = [prompt(store, first, stop, N) for first, stop in requests]
    found = torch.cat([logits for logits, _ in forward.run(model, asked, texts(store), model.paradigm, tokens)])
    assert targets.tolist() == [row for first, stop in requests for row in range(first, stop)]
    np.testing.assert_allclose(torch.sigmoid(found.double()), expected, rtol=0, atol=1e-6)
    assert expected.std() > 0.01


def test_a_model_whose_sums_have_a_rule_of_their_own_is_told_apart() -> None:
    assert forward.supports(small_model("dti", N)) is None
    assert "forgetting is linear" in str(forward.supports(small_model("dti", N, forgetting="linear")))
    assert "nope_alibi" in str(forward.supports(small_model("dti", N, sum_position="nope_alibi")))
