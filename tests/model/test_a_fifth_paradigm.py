"""A new paradigm is one entry of :data:`paradigms.PARADIGMS` and the oracle's rule: then it packs, trains, is drawn,
evaluated and compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dti_pipeline import paradigms
from dti_pipeline.config import Config
from dti_pipeline.modeling.masks import draw
from dti_pipeline.modeling.masks.visibility import dense, intervals, visible
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import Paradigm, Reach, Style
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BY_NAME
from dti_pipeline.planning import cost
from tests.model import oracle
from tests.model.conftest import SPECIAL, TOLERANCE, Log, differences, logits_by_target, small_model

#: Item states stand alone, and a [SUM] reads its whole prompt.
FIFTH = Paradigm(
    "item_then_all",
    text=Reach.ITEM,
    sums=Reach.PROMPT,
    streams=True,
    style=Style("#CC79A7", "-", "v", "\\\\"),
)


def sees(context: int, tokens: list[oracle.Token], q: int, k: int) -> bool:
    """The oracle's rule of it, in plain words: its own item; a [SUM] everything before it."""
    if q == k:
        return True
    if k > q or tokens[k]["kind"] == "sum":
        return False
    return tokens[q]["kind"] == "sum" or tokens[q]["interaction"] == tokens[k]["interaction"]


@pytest.fixture(autouse=True)
def five(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paradigms, "PARADIGMS", (*paradigms.PARADIGMS, FIFTH))


def test_its_masks_are_the_oracle_s_and_its_cost_counts_them() -> None:
    n, k = 3, 4
    log = Log.random(users=4, seed=3, shortest=6)
    rows = log.rows(n, k, 128)
    batch = log.batch_of(rows)
    mask = visible(batch.tokens, FIFTH, n)
    assert torch.equal(dense(intervals(batch.tokens, FIFTH, n)), mask)
    for row in range(len(rows)):
        slot = 0
        for prompt in np.flatnonzero(rows.row == row):
            first, stop = int(rows.first_target[prompt]), int(rows.stop[prompt])
            user = int((log.store.position[: first + 1] == 0).sum()) - 1
            before = first - int(log.store.position[first])
            tokens = oracle.prompt(log.histories[user], first - before, stop - before, n, SPECIAL)
            own = mask[row, slot : slot + len(tokens), slot : slot + len(tokens)]
            for q in range(len(tokens)):
                assert own[q].tolist() == [sees(n, tokens, q, key) for key in range(len(tokens))]
            slot += len(tokens)
    drawn = draw.prompt_mask(FIFTH, 2, 3, 3)
    assert drawn.plain()["visible"] != draw.prompt_mask(paradigms.DTI_ISOLATED, 2, 3, 3).plain()["visible"]


def test_its_pairs_are_counted() -> None:
    n, k = 3, 4
    log = Log.random(users=4, seed=3, shortest=6)
    from dti_pipeline.packing import prompts

    store = log.store
    cut, _ = prompts.cut(store.position >= 1, store.position, store.seen, store.lengths(), n, k, 128, 0)
    batch = log.batch(n, k, row_length=128)
    pairs = visible(batch.tokens, FIFTH, n)[batch.kind != Kind.PAD].sum()
    assert cost.visible_pairs(FIFTH, cut, store, n) == int(pairs)


def test_it_is_exact_where_it_is_served_as_it_was_trained() -> None:
    log = Log.random(users=4, seed=3, shortest=6)
    model = small_model(FIFTH.name, 3)
    rows = log.rows(3, None, 128)
    from tests.model.conftest import alone

    apart = differences(*(logits_by_target(model, log.batch_of(form)) for form in (rows, alone(rows))))
    assert max(apart.values()) < TOLERANCE


def test_it_goes_through_the_stages(token_home: tuple[Config, Paths]) -> None:
    config, paths = token_home
    config = replace(config, paradigms=("sliding_window", FIFTH.name))
    for name in ("pack", "train", "evaluate"):
        for paradigm in config.paradigms:
            BY_NAME[name].run(config, paths, paradigm)
    BY_NAME["compare"].run(config, paths)
    assert FIFTH.name in paths.comparison_file("md").read_text()
    assert (paths.comparison / "auc_time.svg").is_file()
