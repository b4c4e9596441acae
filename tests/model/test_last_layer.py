"""The last layer at [SUM] rows only: the logits and gradients of the layer at all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.modeling.attention.sums import rows as sum_rows
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paradigms import DTI, names
from tests.model.architectures import ACCEPTED, write
from tests.model.conftest import SPECIAL, TOLERANCE, VOCABULARY, Log, k_of, planned, small_model, speaking

#: Architectures that compute it at all rows: their layers have no k and v projection of their own, or another norm.
PLAIN = {"phi3", "gpt_neox"}


def outcome(model: CTRModel, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(batch)
    binary_cross_entropy_with_logits(logits, batch.label).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def assert_last_layer_at_sums_is_exact(model: CTRModel, batch: Batch) -> None:
    assert model.plan.last_layer_at_sums
    rows: list[int] = []
    last = decoder_of(model.lm).layers[-1]
    hook = last.mlp.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    at_sums = outcome(model, batch)
    plain = outcome(planned(model, last_layer_at_sums=False), batch)
    hook.remove()
    assert rows == [batch.sum_slot.shape[1], batch.token.shape[1]]
    torch.testing.assert_close(at_sums, plain, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize("paradigm", names())
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
@pytest.mark.parametrize("forgetting", ["none", "linear"])
@pytest.mark.parametrize("position", ["rope", "rope_alibi", "nope_alibi"])
@pytest.mark.parametrize("keys", [8, 256])
def test_it_is_exact(
    paradigm: str, prefix: tuple[int, ...], forgetting: str, position: str, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sum_rows, "KEYS", keys)
    log = Log.random(users=5, seed=3, shortest=5, prefix=prefix)
    model = small_model(paradigm, 3, prefix=len(prefix), forgetting=forgetting, sum_position=position)
    assert_last_layer_at_sums_is_exact(model, log.batch(3, k_of(paradigm), row_length=120))


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_it_is_exact_in_every_architecture_that_can_or_is_left_out(tmp_path: Path, kind: str, rank: int) -> None:
    config = ModelConfig(name_or_path=write(tmp_path, kind), lora=LoraConfig(rank=rank, target_modules=("o_proj",)))
    if kind in PLAIN:
        config = ModelConfig(name_or_path=config.name_or_path, lora=LoraConfig(rank=0))
        assert not CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL).plan.last_layer_at_sums
        return
    model = speaking(CTRModel(config, DTI, 3, VOCABULARY, 128, SPECIAL))
    assert_last_layer_at_sums_is_exact(model, Log.random(users=3, seed=5).batch(3, 4, row_length=128))


def test_rows_with_fewer_sums_than_others_lose_and_repeat_no_gradient() -> None:
    """Where [SUM] rows replace others, what fills the shorter rows must have no gradient and take none away."""
    log = Log.random(users=6, seed=4, shortest=4, longest=14)
    whole = log.batch(2, 3, row_length=64)
    assert not whole.sum_valid.all()
    assert len(whole.token) > 1
    model = small_model("dti", 2, sum_position="rope_alibi", layers=3)
    _, gradients = outcome(model, whole)
    rows = log.rows(2, 3, 64)
    summed: dict[str, torch.Tensor] = {}
    for row in range(len(rows)):
        layout = rows.assemble(torch.tensor([row]).numpy())
        part = Batch.of(layout, log.store.label)
        share = len(part.label) / len(whole.label)
        for name, gradient in outcome(model, part)[1].items():
            summed[name] = summed.get(name, 0) + share * gradient
    torch.testing.assert_close(gradients, summed, atol=TOLERANCE, rtol=1e-4)
