"""The compiled model: all layers are one piece of code, the last and narrow one another, and nothing breaks a graph.

Kernels are not generated here (that takes a minute); what the compiler is given is run as it is.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dti_pipeline.modeling.backbone import decoder_of
from tests.model.architectures import write
from tests.model.conftest import Log
from tests.model.test_precision import adapted, outcome


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
