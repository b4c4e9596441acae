"""The compiled model: all layers are one piece of code, the last and narrow one another, and nothing breaks a graph.

Kernels are not generated here (that takes a minute); what the compiler is given is run as it is.
"""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dti_pipeline.modeling.attention.backends import Fused
from dti_pipeline.modeling.masks.visibility import intervals
from dti_pipeline.modeling.network.backbone import decoder_of
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.speed.compiler import allow_graphs
from dti_pipeline.paradigms import DTI, names
from tests.model.architectures import write
from tests.model.conftest import TOLERANCE, Log, k_of, placed, small_model
from tests.model.test_precision import adapted, assert_near, outcome


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("fixes", [{}, {"forgetting": "linear", "sum_position": "nope_alibi"}], ids=["plain", "fixes"])
def test_layers_share_one_graph_without_a_break(tmp_path: Path, fixes: dict[str, str]) -> None:
    torch._dynamo.reset()
    model = adapted(write(tmp_path, "llama", num_hidden_layers=4), torch.bfloat16, **fixes)
    batch = Log.random(users=4, seed=5, shortest=8).batch(3, 4, row_length=128)
    expected = outcome(model, batch)
    compiler = CompileCounterWithBackend("aot_eager")
    for layer in decoder_of(model.lm).layers:
        layer.compile(dynamic=False, fullgraph=True, backend=compiler)
    for _ in range(2):
        logits, gradients = outcome(model, batch)
        torch.testing.assert_close(logits, expected[0], atol=1e-2, rtol=0)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[1][name], atol=1e-2, rtol=0.05)
    assert compiler.frame_count == 2
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("paradigm", names())
@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
def test_a_small_model_compiled_on_cuda_is_the_cpu_s(paradigm: str, prefix: tuple[int, ...]) -> None:
    cuda = torch.device("cuda")
    log = Log.random(users=6, seed=5, shortest=8, prefix=prefix)
    batch = log.batch(3, k_of(paradigm), row_length=256)
    model = small_model(paradigm, 3, prefix=len(prefix), hidden_size=64)
    assert model.pooled
    exact = outcome(model, batch)
    placed(model)
    for _ in range(2):
        assert_near(outcome(model, batch.to(cuda)), exact, logits=1e-3, gradients=1e-3)


def test_more_graphs_than_allowed_are_an_error_and_not_slow_steps() -> None:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        allow_graphs()
        twice = torch.compile(lambda x: 2 * x, dynamic=False, backend="eager")
        for size in range(2, 66):
            twice(torch.ones(size))
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            twice(torch.ones(66))
    torch._dynamo.reset()


@pytest.mark.parametrize("prefix", [(), (9, 8)], ids=["bare", "prefix"])
def test_what_is_around_a_small_models_layers_is_compiled_once(prefix: tuple[int, ...]) -> None:
    """Without a break, for all batches of a shape, however many targets they have: a graph for each would soon be more
    than are allowed."""
    torch._dynamo.reset()
    log = Log.random(users=30, seed=5, longest=20, prefix=prefix)
    rows = log.rows(3, 4, 128)
    model = small_model("dti", 3, prefix=len(prefix), dropout=0.1)
    assert model.pooled
    batches = [Batch.of(rows.assemble(np.arange(i, i + 2)), log.store.label) for i in range(6)]
    batches = [dataclasses.replace(batch, host=batch) for batch in batches]  # as those of a GPU
    assert len({len(batch.target) for batch in batches}) > 3
    with torch.no_grad():
        expected = [model(batch) for batch in batches]
        compiler = CompileCounterWithBackend("eager")
        model.fused = cache(partial(torch.compile, fullgraph=True, backend=compiler))
        for batch, logits in zip(batches, expected, strict=True):
            torch.testing.assert_close(model(batch), logits, atol=TOLERANCE, rtol=0)
            spans = intervals(batch.tokens, DTI, 3)
            found = model.fused(Fused.of, dynamic=False)(spans, model.has_prefix, False).facts
            assert all(map(torch.equal, found, Fused.of(spans, model.has_prefix, False).facts))
            assert all(x.is_contiguous() for x in found)
    assert compiler.frame_count == 4, "what enters the first layer, the mask's numbers, who reads a key, the logits"
    model.train()
    for batch in batches:
        model(batch).sum().backward()
    assert compiler.frame_count == 7, "for training, all but the readers once more"
    torch._dynamo.reset()
