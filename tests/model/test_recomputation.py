"""Activation checkpointing changes what is kept for the backward pass, and no number."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from dti_pipeline.config import Config
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.recomputation import recompute_layers
from dti_pipeline.paths import Paths
from dti_pipeline.training.train import train
from tests.model.architectures import write
from tests.model.conftest import Log, placed, planned, small_model
from tests.model.test_fallback import PARADIGM, assert_same, home_of
from tests.model.test_precision import Outcome, adapted, assert_near, outcome

BATCH = Log.random(users=4, seed=5, shortest=8).batch(3, 4, row_length=128)
FIXES = {"forgetting": "linear", "sum_position": "nope_alibi"}


def made(folder: Path, trained: str, **settings: Any) -> CTRModel:
    if trained == "lora":
        return adapted(write(folder, "llama", num_hidden_layers=3), torch.bfloat16, **settings)
    return small_model("dti", 3, layers=3, dropout=0.2, **settings)


def passed(model: CTRModel) -> tuple[Outcome, int]:
    """What a pass gives in training, and the bytes that it keeps for its backward pass beside weights."""
    own = {weight.untyped_storage().data_ptr() for weight in model.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    model.train()
    torch.manual_seed(11)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        return outcome(model, BATCH), sum(kept.values())


@pytest.mark.parametrize("trained", ["lora", "all"])
@pytest.mark.parametrize("settings", [{}, FIXES], ids=["plain", "fixes"])
def test_gradients_are_the_same_and_less_is_kept(tmp_path: Path, trained: str, settings: dict[str, str]) -> None:
    model = made(tmp_path, trained, **settings)
    planned(model, last_layer_at_sums=True)
    (logits, gradients), kept = passed(model)
    recompute_layers(model)
    (again, its_gradients), less = passed(model)
    assert torch.equal(again, logits)
    assert its_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert torch.equal(its_gradients[name], gradient), name
    assert less < 0.6 * kept


def test_compiled_layers_are_recomputed_too(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = made(tmp_path, "lora")
    recompute_layers(model)
    expected, _ = passed(model)
    compiler = CompileCounterWithBackend("aot_eager")
    for layer in decoder_of(model.lm).layers:
        layer.compile(dynamic=False, fullgraph=True, backend=compiler)
    for _ in range(2):
        assert_near(passed(model)[0], expected, logits=1e-2, gradients=0.05)
    assert compiler.frame_count == 2, "the layers' graph and the last one's, not one more for the second time"
    torch._dynamo.reset()


def test_another_thread_recomputes_without_compiling_anew(tmp_path: Path) -> None:
    """A GPU's backward pass runs in a thread of its own."""
    torch._dynamo.reset()
    model = made(tmp_path, "lora").train()
    recompute_layers(model)
    compiler = CompileCounterWithBackend("aot_eager")
    for layer in decoder_of(model.lm).layers:
        layer.compile(dynamic=False, fullgraph=True, backend=compiler)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(BATCH).square().sum()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(loss.backward).result()
    assert compiler.frame_count == 2
    assert all(weight.grad is not None for name, weight in model.trained().items() if "lora" in name)
    torch._dynamo.reset()


def test_nothing_is_recomputed_where_nothing_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(tmp_path, "all").eval()
    expected = model(BATCH)
    recompute_layers(model)
    monkeypatch.setattr("dti_pipeline.modeling.network.recomputation.checkpoint", None)
    assert torch.equal(model(BATCH), expected)


def test_a_training_is_the_same(token_home: tuple[Config, Paths], tmp_path: Path) -> None:
    homes = []
    for name, on in (("without", False), ("with", True)):
        config, paths = home_of(token_home, tmp_path / name, activation_checkpointing=on)
        train(config, paths, PARADIGM)
        homes.append(paths)
    assert_same(*homes)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 1024])
@pytest.mark.parametrize("settings", [{}, FIXES], ids=["plain", "fixes"])
def test_compiled_layers_on_cuda_are_recomputed(width: int, settings: dict[str, str]) -> None:
    cuda = torch.device("cuda")
    found, graphs = [], []
    for recomputed in (False, True):
        heads = {"heads": width // 16, "kv_heads": width // 32}
        model = small_model("dti", 3, layers=3, hidden_size=width, initial_std=0.02, **heads, **settings)
        if recomputed:
            recompute_layers(model)
        counters.clear()
        found.append(outcome(placed(model).train(), BATCH.to(cuda)))
        graphs.append(counters["stats"]["unique_graphs"])
    assert_near(found[1], found[0], logits=1e-5, gradients=1e-4)
    assert graphs[0] == graphs[1]


@pytest.mark.gpu
def test_a_cuda_graph_records_what_is_recomputed(token_home: tuple[Config, Paths], tmp_path: Path) -> None:
    config, paths = home_of(token_home, tmp_path / "home", activation_checkpointing=True, device="cuda")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0))
    report = train(config, paths, PARADIGM)
    assert report.execution["cuda_graph"]["on"]
    assert report.fallbacks == ()
