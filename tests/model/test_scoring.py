"""Scores do not depend on how batches are padded, nor on who assembles them."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch

from dti_pipeline.evaluation.predict import Batches
from dti_pipeline.modeling.network import compilation
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.compilation import compile_to_score
from dti_pipeline.modeling.network.scoring import score
from tests.model.conftest import Log, planned, small_model

CPU = torch.device("cpu")


def test_what_a_gpu_pads_and_a_thread_assembles_has_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    log, model = Log.random(users=10, seed=3), small_model("dti", 3)
    rows = log.rows(3, 2, 96)
    wanted = np.arange(len(rows))
    target, probability = score(model, rows, wanted, 3 * 96, CPU)
    assert len(rows) % 3, "the last batch is padded to the others' height"
    counts = rows.targets()
    assert counts.min() < counts.max(), "and rows are padded to one number of targets"
    assert len(target) == counts.sum()
    shapes = []

    def stay(batch: Batch, device: torch.device) -> Batch:
        shapes.append((len(batch.token), len(batch.target)))
        return batch

    monkeypatch.setattr(Batch, "to", stay)
    monkeypatch.setattr(Batch, "pin", dataclasses.replace)
    found, its_probability = score(model, rows, wanted, 3 * 96, torch.device("cuda"))
    assert len(shapes) > 1
    assert set(shapes) == {(3, 3 * int(counts.max()))}
    assert np.array_equal(found, target)
    np.testing.assert_allclose(its_probability, probability, rtol=1e-5)


class Small(torch.nn.Module):
    """A model on a device that has no memory for more than ``rows`` rows."""

    def __init__(self, model: torch.nn.Module, rows: int) -> None:
        super().__init__()
        self.model, self.rows = model, rows

    def forward(self, batch: Batch, *arguments: Any) -> torch.Tensor:
        if len(batch.token) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        found: torch.Tensor = self.model(batch, *arguments)
        return found


def test_where_memory_runs_out_batches_are_halved_and_stay_so(caplog: pytest.LogCaptureFixture) -> None:
    log, model = Log.random(users=30, seed=3), small_model("dti", 3)
    rows = log.rows(3, 2, 96)
    wanted = np.arange(len(rows))
    assert len(rows) > 8
    expected = score(model, rows, wanted, 96, CPU)
    batches = Batches(8 * 96 + 95)
    for _ in range(2):
        target, probability = batches.score(Small(model, 2), rows, wanted, device=CPU)
        assert np.array_equal(target, expected[0])
        np.testing.assert_allclose(probability, expected[1], rtol=1e-5)
    said = (
        "a batch of {} tokens does not fit the memory: scores are computed in batches of {} tokens;"
        " evaluation.tokens_per_batch: {} saves the attempt"
    )
    assert caplog.messages == [said.format(768, 384, 384), said.format(384, 192, 192)]
    batches.score(Small(model, 1), rows, wanted[:2], device=CPU)
    assert batches.tokens == 96
    with pytest.raises(torch.OutOfMemoryError):
        batches.score(Small(model, 0), rows, wanted, device=CPU)


def test_a_model_is_compiled_for_much_work_and_stays_as_it_was_where_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(compilation, "compile_parts", lambda model: steps.append("compiled"))
    monkeypatch.setattr(compilation, "uncompile", lambda model: steps.append("undone"))
    model = planned(small_model("dti", 3), compiled_layers=True)

    def broken() -> None:
        raise RuntimeError("no kernel\nand many lines more")

    compile_to_score(model, 1000, broken)
    assert steps == []
    compile_to_score(planned(model, compiled_layers=False), 10**15, broken)
    assert steps == []
    planned(model, compiled_layers=True)
    compile_to_score(model, 10**15, lambda: steps.append("tried"))
    assert steps == ["compiled", "tried"]
    with caplog.at_level(logging.WARNING):
        compile_to_score(model, 10**15, broken)
    assert steps[2:] == ["compiled", "undone"]
    assert caplog.messages == ["scores are computed by layers that are not compiled: no kernel"]
