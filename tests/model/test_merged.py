"""Adapters merged into one product: the same logits and gradients, the same weights under the same names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dti_pipeline.modeling.network import probe
from dti_pipeline.modeling.network.backbone import decoder_of, whole
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.speed import merged
from tests.model.architectures import write
from tests.model.conftest import Log
from tests.model.test_precision import adapted, assert_near, outcome

CPU = torch.device("cpu")
batch = Log.random(users=6, seed=5, shortest=8).batch(3, 4, row_length=128)


def merge(model: CTRModel) -> CTRModel:
    merged.merge(decoder_of(model.lm))
    assert any(type(module) is merged.MergedLinear for module in model.modules())
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "gpt_neox"])
def test_merged_adapters_have_the_same_logits_and_gradients(kind: str, tmp_path: Path) -> None:
    model = adapted(write(tmp_path, kind), torch.float32, kind)
    names, expected = list(model.state_dict()), outcome(model, batch)
    assert_near(outcome(merge(model), batch), expected, logits=1e-5, gradients=1e-4)
    assert list(model.state_dict()) == names
    model.place(model.make_plan(CPU))
    assert not any(type(module) is merged.MergedLinear for module in model.modules()), "on a CPU as peft has it"
    torch.testing.assert_close(outcome(model, batch), expected, atol=0, rtol=0)


def test_in_bfloat16_they_are_as_near_to_fp32_as_peft_s_are(tmp_path: Path) -> None:
    path = write(tmp_path, "llama")
    exact = outcome(adapted(path, torch.float32), batch)
    for model in (adapted(path, torch.bfloat16), merge(adapted(path, torch.bfloat16))):
        assert_near(outcome(model, batch), exact, logits=0.05, gradients=0.1)


def test_a_plan_merges_adapters_of_narrow_models_on_a_gpu(tmp_path: Path) -> None:
    model = adapted(write(tmp_path, "llama"), torch.bfloat16)
    assert model.make_plan(torch.device("cuda")).merged_adapters
    sharded = model.make_plan(torch.device("cuda"), sharded=True).merged_adapters
    assert "sharded" in sharded.reason
    assert not model.make_plan(CPU).merged_adapters


def test_merged_adapters_in_bfloat16_can_be_asked_in_fp32(tmp_path: Path) -> None:
    """As before item states are kept on a GPU: what the model does to its keys is looked at in fp32."""
    model = merge(adapted(write(tmp_path, "llama"), torch.bfloat16))
    assert probe.keys_can_be_unrotated(whole(model.lm))
    hidden = torch.randn(3, model.lm.config.hidden_size)
    layer = next(module for module in model.modules() if type(module) is merged.MergedLinear)
    assert layer(hidden).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(hidden).dtype == torch.bfloat16
