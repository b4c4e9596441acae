"""The benchmarks of a GPU's training step do, at a tiny size on a CPU, what they do there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import first_step, train_step
from benchmarks.lib import kernels, llama, timing
from dti_pipeline.paradigms import DTI, SLIDING_WINDOW
from tests.code.test_benchmarks import bench

CPU = torch.device("cpu")


def test_both_forms_of_the_sliding_window_are_the_same_model() -> None:
    """The baseline may use the fastest causal kernel only because it gives every target the same logit."""
    context, c, prompts = 5, 4, 3
    length = (context + 1) * c + 1
    settings = llama.lora(llama.TINY, rank=4)
    torch.manual_seed(0)
    model = llama.model(llama.TINY, settings, context, 128, CPU, torch.float32).eval()
    store = llama.log(prompts, context + 1, c, llama.TINY.vocabulary)
    packed = llama.work(llama.rows(store, context, 1, prompts, 128), np.arange(1), CPU)
    dense = llama.work(llama.rows(store, context, 1, 1, length), np.arange(prompts), CPU)
    assert dense.batches[0].token.shape == (prompts, length)
    assert dense.step.targets == packed.step.targets == prompts
    gradients = []
    logits = []
    for work, is_dense in ((packed, False), (dense, True)):
        model.switch(SLIDING_WINDOW, is_dense, "rope", "none")
        model.zero_grad()
        logits.append(model(work.batches[0]))
        logits[-1].square().sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in model.trained().items()})
    assert logits[0].abs().max() > 0.01
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_a_model_that_forgets_is_one_switch_away() -> None:
    settings = llama.lora(llama.TINY, rank=4)
    torch.manual_seed(0)
    model = llama.model(llama.TINY, settings, 3, 128, CPU, torch.float32).eval()
    batch = llama.work(llama.rows(llama.log(1, 9, 4, 100), 3, 6, 1, 128), np.arange(1), CPU).batches[0]
    said = []
    for forgetting in ("none", "linear", "none"):
        model.switch(DTI, False, "rope", forgetting)
        said.append(model(batch).detach())
    assert torch.equal(said[0], said[2])
    assert not torch.allclose(said[0], said[1], atol=1e-4)


def test_texts_repeat_themselves_as_real_ones_do_and_no_more() -> None:
    def share(texts: str) -> float:
        plan = llama.rows(llama.log(5, 70, 30, 128_256, texts=texts), 20, 50, 5, 10768)
        layout = plan.assemble(np.arange(1))
        return len(np.unique(layout.token)) / layout.token.size

    assert 0.12 < share("zipf") < 0.18  # of MovieLens-1M: 0.12 at most
    assert share("random") > 0.8


def test_rows_have_the_length_that_their_prompts_fill() -> None:
    assert llama.row_shape(631, 10768) == (17, 10768)  # the sliding window, n = 20, c = 30
    assert llama.row_shape(2150, 10768) == (5, 10768)  # k = 50: the same row, so the same compiled graph
    assert llama.row_shape(6180, 10768) == (2, 12432)  # k = 180
    assert llama.row_shape(6180, 8192) == (1, 6288)  # on a smaller card
    assert llama.row_shape(910, 10768) == (10, 9104)  # k = 10: nearly no padding
    assert llama.row_shape(900, 512) == (1, 912)  # longer than asked for: a prompt must fit


@pytest.mark.slow
def test_the_training_step_is_measured_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "step.png"
    options = ("--steps", "2", "--tiny", "--commit", "abc", "--profile", str(picture))
    rows, said = bench("train_step", tmp_path, *options)
    assert len(rows) == 13
    assert {(row["paradigm"], row["form"]) for row in rows[:2]} == {
        ("sliding_window", "dense"),
        ("sliding_window", "packed"),
    }
    assert max(row["speedup"] for row in rows[:2]) == 1, "speed-ups are over the faster form"
    for row in rows:
        assert row["command"] == "python -m benchmarks.train_step --steps 2 --tiny"
        assert row["pass_ms_min"] <= row["pass_ms"] <= row["pass_ms_max"]
        assert row["targets_per_second"] > 0
        assert 3 < row["distinct_tokens_per_pass"] < row["tokens_per_pass"]
        assert row["tokens_per_pass"] == row["targets_per_pass"] // row["k"] * (20 * 4 + 5 * row["k"])
    assert {row["fixes"] for row in rows} == {"", "nope_alibi", "rope_alibi", "linear", "nope_alibi linear"}
    bounds = [row["bound"] for row in rows if (row["paradigm"], row["fixes"]) == ("dti", "") and row["k"] in (5, 180)]
    assert sorted(bounds) == bounds[::-1], "more targets a prompt, a higher bound"
    assert "| dti | packed |" in said
    assert picture.stat().st_size > 10_000
    steps = json.loads((tmp_path / "train_step_profile.json").read_text())
    assert len(steps) == 13
    assert all(step["matrix products ms"] > 0 and step["clipping and optimizer ms"] > 0 for step in steps)


def test_no_variant_is_begun_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, clock = [], [0]
    for module in (train_step, timing):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    timed = SimpleNamespace(
        prepare=lambda variant: begun.append(variant) or train_step.Measured(variant, [], 0.0, [1.0], [1.0]),
        step=lambda one: clock.append(clock.pop() + 1),
    )
    # A second to prepare each, then two to measure each: three variants need 9, four 12.
    measured = train_step.warmed_up(timed, train_step.VARIANTS, 9, steps=2)
    assert begun == list(train_step.VARIANTS[:3])
    assert len(measured) == 3
    assert all(one.passes == one.updates == [] for one in measured)


@pytest.mark.slow
def test_scaling_is_measured_in_two_processes(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    rows, _ = bench("scaling", tmp_path, "--steps", "2", "--tiny", launcher=launcher, result="scaling_2")
    found = [(row["trained"], row["sharding"], row["paradigm"], row["processes"]) for row in rows]
    assert found == [
        ("lora", "none", "dti", 1),
        ("lora", "none", "sliding_window", 1),
        ("lora", "none", "dti", 2),
        ("lora", "none", "sliding_window", 2),
        ("full", "full", "dti", 1),
        ("full", "full", "dti", 2),
        ("lora", "full", "dti", 2),
    ]
    for row in rows:
        assert row["command"] == "torchrun --nproc-per-node 2 -m benchmarks.scaling --steps 2 --tiny"
        assert row["efficiency"] > 0
        each = row["targets_per_second_and_process"]
        assert row["targets_per_second"] == pytest.approx(row["processes"] * each, rel=1e-2)
    # On a CPU, DDP's exchange of gradients is inside an operator of the backward pass, and is not told apart.
    assert all(
        row["communication_kernels_ms"] > 0 for row in rows if (row["processes"], row["sharding"]) == (2, "full")
    )


@pytest.mark.slow
def test_an_epoch_is_measured_at_its_best_size(tmp_path: Path) -> None:
    rows, _ = bench("epoch", tmp_path, "--seconds", "0.2", "--only", "1", "50", "--tiny")
    assert [(row["paradigm"], row["k"]) for row in rows] == [("sliding_window", 1), ("dti", 50)]
    assert rows[0]["speedup"] == 1
    for row in rows:
        assert row["tokens_per_batch"] in (512, 1024)
        assert row["tokens_per_pass"] <= row["tokens_per_batch"]
        assert row["targets_per_step"] == 64
        assert row["counted_steps"] >= 1
        assert row["epoch_seconds"] > 0
    assert all(row["fewer_tokens"] > 8 for row in rows[1:])


@pytest.mark.slow
def test_a_start_is_measured_in_parts_that_add_up(tmp_path: Path) -> None:
    (tmp_path / "first_step.json").write_text(
        json.dumps([{"model": "tiny", "trained": one} for one in ("all", "lora")])
    )
    rows, _ = bench("first_step", tmp_path, "--tiny", "--trained", "lora", "--add")
    assert [(row["trained"], row.get("cache")) for row in rows] == [("all", None), ("lora", "cold"), ("lora", "warm")]
    for row in rows[1:]:
        parts = [row[name.replace(" ", "_")] for name in first_step.PARTS]
        assert row["trained"] == "lora"
        assert row["seconds"] == pytest.approx(sum(parts), abs=0.2)
        assert row["imports"] > 0.5
        assert row["first_step"] > 0


@pytest.mark.slow
def test_scoring_is_measured_against_its_limit(tmp_path: Path) -> None:
    rows, _ = bench("evaluation", tmp_path, "--shape", "tiny", "--tiny", result="evaluation_gpu")
    assert [row["tokens_per_batch"] for row in rows] == [512, 1024]
    for row in rows:
        assert row["targets"] == 8 * 6
        assert row["tokens"] == 48 * (21 * 11 + 1)
        rate = row["forward_tokens_per_second"]
        assert row["share_of_forward"] == pytest.approx(row["tokens_per_second"] / rate, abs=1e-3)


@pytest.mark.slow
def test_float8_is_judged_by_what_is_trained_on_top(tmp_path: Path) -> None:
    rows, _ = bench("float8_quality", tmp_path, "--seeds", "1", "2", "--tiny")
    assert [row["seed"] for row in rows] == [1, 2, "all"]
    for row in rows:
        assert row["command"] == "python -m benchmarks.float8_quality --seeds 1 2 --tiny"
        assert row["layers_rounded"] == 2 * 7, "every linear layer of both decoder layers"
        assert row["difference"] == pytest.approx(row["auc_float8"] - row["auc_plain"], abs=1.1e-4)
        assert row["low"] < row["high"]
        assert row["low"] <= row["difference"] <= row["high"]
        assert 1e-4 < row["mean_change_of_probability"] < 0.05, "rounded, and no more than rounded"
        assert abs(row["difference"]) < 0.03
        assert row["auc_plain"] > row["auc_base"], "the adapters have learnt something"
    assert rows[0]["auc_plain"] != rows[1]["auc_plain"]
    for figure in ("difference", "mean_change_of_probability"):
        assert rows[2][figure] == pytest.approx((rows[0][figure] + rows[1][figure]) / 2, abs=2e-5)


def test_kernels_are_told_apart() -> None:
    def event(name: str, start: float, duration: float, category: str = "kernel") -> dict:
        return {"name": name, "ts": start, "dur": duration, "cat": category}

    found = kernels.by_kind(
        [
            event("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT", 0, 1000),
            event("triton_tem_fused_flex_attention_0", 1000, 200),
            event("triton_tem_fused_flex_attention_backward_3", 1200, 500),
            event("pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", 1700, 300),
            event("triton_poi_fused_mul_silu_2", 2500, 100),
            event("mask", 2600, 40, "gpu_user_annotation"),
            event("triton_red_fused_sum_1", 2610, 30),
            event("update", 2640, 400, "gpu_user_annotation"),
            event("multi_tensor_apply_kernel", 2640, 400),
            event("Memcpy HtoD (Pinned -> Device)", 3040, 10, "gpu_memcpy"),
            event("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 3050, 40),
            event("aten::mm", 0, 9999, "cpu_op"),
        ],
        "gpu",
    )
    assert found == {
        "attention backward": 0.8,
        "attention forward": 0.2,
        "matrix products": 1.0,
        "copies": 0.01,
        "communication": 0.04,
        kernels.REST: 0.1,
        "mask": 0.03,
        "clipping and optimizer": 0.4,
        "idle": 0.51,
    }
