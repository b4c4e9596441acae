"""Scores do not depend on how batches are padded, nor on who assembles them."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch

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
