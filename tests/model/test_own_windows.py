"""A model's own window is met with ours, layer by layer: a query sees what both allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.attention.backends import Banded
from dti_pipeline.modeling.attention.sums.blocked import blocked_sum_attention
from dti_pipeline.modeling.attention.sums.naive import naive_sum_attention
from dti_pipeline.modeling.masks.visibility import dense, intervals, last_readers, met, visible
from dti_pipeline.modeling.network import batch_attention
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.scoring import score
from dti_pipeline.packing.layout import Kind, Layout
from dti_pipeline.packing.reader import Rows
from dti_pipeline.paradigms import named, names
from dti_pipeline.serving.item_states import ItemStates
from tests.model import oracle
from tests.model.architectures import write
from tests.model.conftest import (
    SPECIAL,
    TOLERANCE,
    VOCABULARY,
    Log,
    alone,
    differences,
    histories,
    logits_by_target,
    planned,
    speaking,
)
from tests.model.serving_forms import scores_of
from tests.model.test_layout_against_oracle import oracle_tokens
from tests.model.test_proof_4_kernels_are_the_dense_mask import (
    attended,
    drawn,
    logits_and_gradients,
    under,
    with_gradients,
)

N = 4
#: Shorter than most prompts, longer than most texts.
WINDOW = 9
#: Architectures whose layers have windows: some of them, all of them, with two rotary embeddings.
WINDOWED: dict[str, dict[str, Any]] = {
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "mistral": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
}
logs = st.builds(Log.random, prefix=st.sampled_from([(), (9, 8, 7)]), **histories)
windows = st.integers(1, 24)


def windowed(
    folder: Path, kind: str, paradigm: str = "dti_isolated", window: int = WINDOW, prefix: int = 0, rank: int = 0,
    row_length: int = 256, **fixes: Any,
) -> CTRModel:  # fmt: skip
    changes = {"num_hidden_layers": 3, **WINDOWED[kind], "sliding_window": window}
    path = write(folder / f"{kind}{window}", kind, **changes)
    config = ModelConfig(name_or_path=path, lora=LoraConfig(rank=rank), **fixes)
    return speaking(CTRModel(config, named(paradigm), N, VOCABULARY, row_length, SPECIAL, prefix))


@pytest.mark.parametrize("paradigm", names())
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]), window=windows)
@settings(max_examples=12, deadline=None)
def test_the_mask_is_the_oracle_s(paradigm: str, log: Log, n: int, k: int | None, window: int) -> None:
    batch = log.batch(n, k, row_length=160)
    mask = met(visible(batch.tokens, named(paradigm), n), batch.position, window)
    for r in range(len(mask)):
        expected = torch.eye(mask.shape[1], dtype=torch.bool)
        for document in batch.document[r][batch.kind[r] != Kind.PAD].unique():
            slots = ((batch.document[r] == document) & (batch.kind[r] != Kind.PAD)).nonzero().flatten().tolist()
            tokens = oracle_tokens(batch, r, slots)
            places = batch.position[r, slots].tolist()
            for q in range(len(slots)):
                for key in reversed(range(q + 1)):
                    if oracle.sees(paradigm, n, tokens, q, key):
                        if places[q] - places[key] >= window:
                            break  # neither this nor what stands before it
                        expected[slots[q], slots[key]] = True
        assert torch.equal(mask[r], expected)


@given(log=st.builds(Log.random, **{**histories, "late": st.just("")}), n=st.integers(0, 6), window=windows)
@settings(max_examples=20, deadline=None)
def test_rows_one_behind_the_other_are_seen_by_their_distance_alone(log: Log, n: int, window: int) -> None:
    batch = log.batch(n, None, row_length=160)
    mask = visible(batch.tokens, named("dti"), n)
    near = batch.position[:, :, None] - batch.position[:, None, :] < window
    assert torch.equal(met(mask, batch.position, window), mask & near)


@pytest.mark.parametrize("paradigm", names())
@given(log=logs, n=st.integers(0, 6), k=st.sampled_from([1, 3, None]), window=windows, seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_intervals_and_bands_are_the_dense_mask(
    paradigm: str, log: Log, n: int, k: int | None, window: int, seed: int
) -> None:
    batch = log.batch(n, k, row_length=256)
    spans = intervals(batch.tokens, named(paradigm), n).within(batch.position, window)
    mask = met(visible(batch.tokens, named(paradigm), n), batch.position, window)
    assert torch.equal(dense(spans), mask)
    assert (spans.first <= spans.own).all()
    slot = torch.arange(256)[None, :, None]
    assert (last_readers(spans, len(log.store.prefix) > 0) >= torch.where(mask, slot, -1).amax(1)).all()
    given, direction = drawn(batch, 4, 2, 16, seed)
    expected = with_gradients(under(mask), given, direction)
    found = with_gradients(attended(Banded.of(spans)), given, direction)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("window", [1, WINDOW, 1000])
def test_a_single_prompt_has_the_states_that_transformers_gives_it(tmp_path: Path, kind: str, window: int) -> None:
    model = windowed(tmp_path, kind, "sliding_window", window)
    own = AutoModelForCausalLM.from_pretrained(model.settings.name_or_path, attn_implementation="eager").eval()
    log = Log.random(users=3, seed=4, shortest=8)
    rows = log.rows(N, 1, 128)
    for target in rows.stop - 1:
        layout = prompt_of(rows, int(target))
        batch = Batch.of(layout, log.store.label)
        end = int(batch.sum_index[0]) + 1  # all but the label
        embedded = model.embed(batch)
        with torch.no_grad():
            ours = model.states(embedded, batch.position, model.batch_attention(batch, embedded))[0, :end]
            theirs = own.get_decoder()(inputs_embeds=embedded[:, :end], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=1e-4)
    assert end > WINDOW
    assert decoder_of(model.lm).config.sliding_window == window


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("position", ["rope", "rope_alibi"])
@pytest.mark.parametrize("late", ["", "shown"])
def test_streaming_targets_get_the_logits_of_their_own_prompts(
    tmp_path: Path, kind: str, position: str, late: str
) -> None:
    log = Log.random(users=4, seed=1, shortest=8, late=late)
    model = windowed(tmp_path, kind, "dti_isolated", sum_position=position)
    streaming = logits_by_target(model, log.batch(N, None))
    assert max(differences(streaming, logits_by_target(model, log.batch(N, 1))).values()) < TOLERANCE
    wide = windowed(tmp_path, kind, "dti_isolated", 1000, sum_position=position)
    assert max(differences(streaming, logits_by_target(wide, log.batch(N, None))).values()) > 1e-3, "it is felt"
    grown, rows = windowed(tmp_path, kind, "dti_growing", sum_position=position), log.rows(N, None, 256)
    apart = differences(*(logits_by_target(grown, log.batch_of(form)) for form in (rows, alone(rows))))
    assert max(apart.values()) < TOLERANCE


@pytest.mark.parametrize("paradigm", names())
@pytest.mark.parametrize("fixes", [{}, {"forgetting": "linear", "sum_position": "nope_alibi"}], ids=["plain", "fixes"])
@pytest.mark.parametrize("late", ["", "shown", "known"])
def test_every_form_of_the_sum_rows_has_the_same_logits_and_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paradigm: str, fixes: dict[str, Any], late: str
) -> None:
    """All rows or [SUM] rows only in the last layer; and by the naive form, where there is one."""
    log = Log.random(users=3, seed=2, shortest=30, longest=90, late=late)
    model = windowed(tmp_path, "mistral", paradigm, 40, row_length=700, **fixes)
    batch = log.batch(N, 1 if paradigm == "sliding_window" else None, row_length=700)
    expected = logits_and_gradients(planned(model, last_layer_at_sums=False), batch)
    found = [logits_and_gradients(planned(model, last_layer_at_sums=True), batch)]
    monkeypatch.setattr(batch_attention, "blocked_sum_attention", naive_sum_attention)
    found.append(logits_and_gradients(model, batch))
    monkeypatch.setattr(batch_attention, "blocked_sum_attention", blocked_sum_attention)
    monkeypatch.setattr(model.attention.__class__, "sums_have_own_rule", property(lambda self: True))
    found.append(logits_and_gradients(model, batch))
    for one in found:
        torch.testing.assert_close(one, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("late", ["", "shown"])
@pytest.mark.parametrize("window", [2, WINDOW])
def test_cached_item_states_score_as_prompts_do(tmp_path: Path, kind: str, late: str, window: int) -> None:
    model = windowed(tmp_path, kind, window=window, row_length=128)
    log = Log.random(users=5, seed=3, late=late)
    rows = log.rows(N, 1, 128)
    targets, expected = score(model, rows, np.arange(len(rows)), 512, torch.device("cpu"))
    found = scores_of(ItemStates(model, torch.device("cpu")), log.store, targets, N)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def prompt_of(rows: Rows, target: int) -> Layout:
    """The layout of a target's prompt."""
    which = int(np.flatnonzero((rows.first_target <= target) & (target < rows.stop))[0])
    row = rows.row[which : which + 1].astype(np.int64)
    layout = rows.assemble(row)
    here = layout.document == which - rows.prompts(row)[0][0]
    return Layout(**{name: array[here][None] for name, array in vars(layout).items()})


@pytest.mark.parametrize("kind", ["cohere", "gpt_neox"])
def test_item_states_are_refused_where_keys_cannot_be_unrotated(tmp_path: Path, kind: str) -> None:
    config = ModelConfig(name_or_path=write(tmp_path, kind), lora=LoraConfig(rank=0))
    model = CTRModel(config, named("dti_isolated"), N, VOCABULARY, 256, SPECIAL)
    with pytest.raises(InputError, match="rotates its keys in a way of its own"):
        ItemStates(model, torch.device("cpu"))


def test_a_window_that_our_attention_is_not_told_of_is_refused_where_a_row_is_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.mistral import modeling_mistral

    honest = modeling_mistral.MistralAttention.__init__

    def silent(self: Any, config: Any, layer_idx: int) -> None:
        honest(self, config, layer_idx)
        self.config = type(config)(**{**config.to_dict(), "sliding_window": None}, attn_implementation="dti")

    monkeypatch.setattr(modeling_mistral.MistralAttention, "__init__", silent)
    with pytest.raises(InputError, match=r"looks back 9 tokens at most, in a way .* lower packing\.row_length"):
        windowed(tmp_path, "mistral")
    windowed(tmp_path, "mistral", window=300)  # no row is longer


def test_chunks_shorter_than_a_row_are_refused(tmp_path: Path) -> None:
    changes = {"attention_chunk_size": 64, "num_local_experts": 2, "intermediate_size_mlp": 48}
    path = write(tmp_path, "llama4_text", layer_types=["chunked_attention", "full_attention"], **changes)
    assert json.loads((tmp_path / "config.json").read_text())["attention_chunk_size"] == 64
    config = ModelConfig(name_or_path=path, lora=LoraConfig(rank=0))
    with pytest.raises(InputError, match=r"attends in chunks of 64 tokens, less than packing\.row_length = 256"):
        CTRModel(config, named("dti"), N, VOCABULARY, 256, SPECIAL)
