"""The plan's pairs are the ones of the masks, and its weights the ones of the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.modeling.masks.visibility import visible
from dti_pipeline.modeling.network import backbone
from dti_pipeline.packing import prompts
from dti_pipeline.packing.layout import Kind
from dti_pipeline.paradigms import named, names
from dti_pipeline.planning import cost
from dti_pipeline.planning.shape import shape_of
from tests.model import architectures
from tests.model.conftest import Log


@pytest.mark.parametrize("paradigm", names())
@given(
    log=st.builds(Log.random, users=st.integers(1, 4), seed=st.integers(0, 10**6), longest=st.integers(3, 15),
                  prefix=st.sampled_from([(), (9, 8)]), late=st.sampled_from(["", "shown", "known"]),
                  user=st.sampled_from([0, 4])),
    context=st.integers(0, 6),
    k=st.sampled_from([1, 2, 5, None]),
    min_history=st.integers(0, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_pairs_are_the_ones_that_the_masks_show(
    paradigm: str, log: Log, context: int, k: int | None, min_history: int
) -> None:
    k = 1 if paradigm == "sliding_window" else k  # its prompts have one target, which is what the formula counts on
    store = log.store
    is_target = store.position >= min_history
    cut, _ = prompts.cut(is_target, store.position, store.seen, store.lengths(), context, k, 256, store.opening())
    counted = cost.visible_pairs(named(paradigm), cut, store, context)
    batch = log.batch(context, k, row_length=256, min_history=min_history)
    not_padding = batch.kind != Kind.PAD
    assert counted == int(visible(batch.tokens, named(paradigm), context)[not_padding].sum())


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_the_network(tied: bool) -> None:
    model = ModelConfig(
        hidden_size=32, layers=3, heads=4, kv_heads=2, intermediate_size=48, tie_embeddings=tied
    )  # fmt: skip
    network = backbone.from_scratch(model, vocabulary=50, row_length=64)
    assert shape_of(model, vocabulary=50).parameters == sum(p.numel() for p in network.parameters())


def test_adapters_and_memory_are_those_of_a_pretrained_network(tmp_path: Path) -> None:
    lora = LoraConfig(rank=3, target_modules=("q_proj", "v_proj", "down_proj"))
    model = ModelConfig(name_or_path=architectures.write(tmp_path, "llama"), lora=lora)
    network = backbone.build(model, 40, 64, trained_tokens=[], frozen_dtype=torch.bfloat16)
    shape = shape_of(model, vocabulary=40)
    trained = [p for p in network.parameters() if p.requires_grad]
    assert shape.adapters(lora.rank, lora.target_modules) == sum(p.numel() for p in trained)
    frozen = [p for p in network.parameters() if not p.requires_grad]
    assert cost.weight_bytes(shape, frozen=True) == sum(p.numel() * p.element_size() for p in frozen)
