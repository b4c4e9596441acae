"""Proof 1: the sliding window is one target a prompt, byte for byte, from the plan's file to the assembled rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.config import Config
from dti_pipeline.packing.pack import PLANS, pack
from dti_pipeline.packing.plans import targets_per_prompt
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.paradigms import named, names
from dti_pipeline.paths import Paths
from tests.model import oracle
from tests.model.conftest import SPECIAL, Log, histories


def packed(config: Config, paths: Paths, targets: int | str, paradigm: str) -> dict[str, bytes]:
    """Every plan's bytes, packed with ``packing.targets``."""
    changed = dataclasses.replace(config, packing=dataclasses.replace(config.packing, targets=targets))
    pack(changed, paths, paradigm)
    return {plan: (paths.shards(paradigm) / f"{plan}.arrow").read_bytes() for plan in PLANS}


@pytest.mark.parametrize("paradigm", names())
def test_every_paradigm_with_one_target_packs_the_sliding_window_s_bytes(
    token_home: tuple[Config, Paths], tmp_path: Path, paradigm: str
) -> None:
    config, paths = token_home
    baseline = packed(config, paths, 50, "sliding_window")["train"]
    one = packed(config, paths, 1, paradigm)
    assert one["train"] == baseline
    # Held-out targets alone and streaming are then the same prompts too.
    assert one["test"] == one["test_streaming"]
    store = TokenStore.open(paths.tokens)
    layouts = []
    for name in (paradigm, "sliding_window"):
        rows = Rows.open(store, paths.shards(name), "train")
        layouts.append(vars(rows.assemble(np.arange(len(rows)))))
    for name, values in layouts[0].items():
        assert values.tobytes() == layouts[1][name].tobytes(), name


def test_a_streaming_plan_is_another_plan(token_home: tuple[Config, Paths]) -> None:
    """The test above could not fail if k never mattered."""
    config, paths = token_home
    plans = {k: packed(config, paths, k, "dti") for k in (1, 4, "all")}
    assert len({plans[k]["train"] for k in plans}) == 3
    assert len({plans[k]["test"] for k in plans}) == 1, "served prompts do not depend on k"


def test_only_training_and_streaming_plans_have_more_than_one_target_a_prompt() -> None:
    config = Config()
    k = {p: {plan: targets_per_prompt(config, plan, named(p)) for plan in PLANS} for p in names()}
    assert {p: k[p]["train"] for p in names()} == {"sliding_window": 1, **dict.fromkeys(names()[1:], 50)}
    assert {plan: k["dti"][plan] for plan in PLANS[1:]} == {
        "validation": 1,
        "validation_streaming": 50,
        "test": 1,
        "test_streaming": 50,
    }


@given(
    log=st.builds(Log.random, **{**histories, "late": st.just("")}),
    context=st.integers(0, 6),
    min_history=st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_one_target_a_prompt_is_n_interactions_and_the_target(log: Log, context: int, min_history: int) -> None:
    """Against the method's own words, without the packer: the n rows before a target, or as many as there are."""
    rows = log.rows(context, 1, row_length=128, min_history=min_history)
    expected = {}
    base = 0
    for history in log.histories:
        for target in range(min_history, len(history)):
            tokens = oracle.prompt(history, target, target + 1, context, SPECIAL)
            expected[base + target] = [token["token"] for token in tokens]
        base += len(history)
    layout = rows.assemble(np.arange(len(rows)))
    found = {}
    for r in range(len(rows)):
        for document in range(int((rows.row == r).sum())):
            slots = layout.document[r] == document
            (target,) = layout.target[r, slots][layout.target[r, slots] >= 0]
            found[int(target)] = layout.token[r, slots].tolist()
    assert found == expected
