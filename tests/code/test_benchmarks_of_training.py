"""The benchmarks of a GPU's training step do, at a tiny size on a CPU, what they do there."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import first_step, memory, train_step
from benchmarks.lib import harness, kernels, llama, sizes, steps, timing
from dti_pipeline.paradigms import DTI, SLIDING_WINDOW, names
from tests.code.test_benchmarks import bench

CPU = torch.device("cpu")


def test_both_forms_of_the_sliding_window_are_the_same_model() -> None:
    """The baseline may use the fastest causal kernel only because it gives every target the same logit."""
    context, c, prompts = 5, 4, 3
    length = (context + 1) * c + 1
    settings = llama.adapted(llama.TINY, rank=4)
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
    settings = llama.adapted(llama.TINY, rank=4)
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


def given(*words: str) -> argparse.Namespace:
    """Options of a benchmark of training steps, complete."""
    options = harness.parser("", gpu=True)
    sizes.add_options(options)
    found = options.parse_args(words)
    sizes.complete(found)
    return found


@pytest.mark.parametrize(
    ("shape", "tokens", "per_interaction", "modules"),
    [
        ("smollm2-135m", 65_536, 17, "all-linear"),
        ("gemma-3-270m", 65_536, 17, "all-linear"),
        ("llama-3.2-1b", 32_768, 17, "all-linear"),
        ("qwen2.5-1.5b", 32_768, 17, "all-linear"),
        ("llama-3.1-8b", 10_768, 30, "q_proj,v_proj"),
    ],
)
def test_a_shape_decides_how_much_is_measured(shape: str, tokens: int, per_interaction: int, modules: str) -> None:
    usual = given("--shape", shape)
    assert (usual.tokens, usual.tokens_per_interaction, usual.lora_modules) == (tokens, per_interaction, modules)
    for k in (1, 50, 180):
        prompts, length = llama.row_shape(20 * per_interaction + k * (per_interaction + 1), usual.row_length)
        rows = sizes.rows_per_batch(usual, k)
        assert rows * length == pytest.approx(tokens, rel=0.16), "every variant has as many tokens, about"
        assert rows * prompts * k <= usual.targets_per_step
    asked = given("--shape", shape, "--tokens", "5000", "--lora-modules", "q_proj,v_proj", "--targets-per-step", "7")
    assert (asked.tokens, asked.row_length, asked.targets_per_step) == (5000, 5000, 7)
    assert sizes.settings_of(asked).lora.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize("train", ["lora", "all"])
def test_what_is_trained_is_in_fp32_and_what_is_frozen_is_not(train: str) -> None:
    settings = sizes.settings_of(given("--tiny", "--train", train))
    model = llama.untrained(llama.TINY, settings, 5, 128, CPU, torch.bfloat16)
    layers = {name: weight for name, weight in model.named_parameters() if ".layers." in name and "norm" not in name}
    assert {weight.dtype for weight in model.trained().values()} == {torch.float32}
    assert {weight.dtype for weight in layers.values()} == {torch.float32} | (
        {torch.bfloat16} if train == "lora" else set()
    )
    adapters = sum(weight.numel() for name, weight in model.trained().items() if "lora" in name)
    modules = sizes.LORA_MODULES["all-linear"]
    assert adapters == (llama.TINY.adapters(sizes.RANK, modules) if train == "lora" else 0)


@pytest.mark.parametrize("options", [("lora",), ("all",), ("all", "--activation-checkpointing")])
def test_a_step_changes_what_is_trained_and_nothing_else(options: tuple[str, ...]) -> None:
    bench = steps.Bench(given("--tiny", "--train", *options))
    before = {name: weight.detach().clone() for name, weight in bench.model.named_parameters()}
    trained = set(bench.model.trained())
    for variant in train_step.VARIANTS[:3]:
        measured = bench.prepare(variant)
        assert measured.first_step_seconds > 0
        assert measured.compilation == "none"
    moved = {name for name, weight in bench.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved <= trained
    assert len(moved) > 0.9 * len(trained)  # queries and keys of a token that sees itself alone have no gradient


@pytest.mark.parametrize(
    ("weights", "row", "fits"), [(10.0, 1.0, 90), (10.0, 7.0, 12), (1.0, 60.0, 1), (90.0, 20.0, 0)]
)
def test_the_largest_micro_batch_is_found_in_a_few_trials(weights: float, row: float, fits: int) -> None:
    tried: list[int] = []

    def peak(rows: int) -> float | None:
        tried.append(rows)
        needed = weights + row * rows
        return needed if needed <= 100 else None

    found = memory.largest(peak, 6, 100, trials=6)
    assert (found or 0) >= (1 - memory.EXACT) * fits - 1e-9
    assert (found or 0) <= fits
    assert len(tried) == len(set(tried)) <= 7
    assert memory.largest(peak, 2, 100, trials=0) == (2 if fits >= 2 else None), "of no trials the first is known"


@pytest.mark.long
@pytest.mark.slow
def test_memory_is_measured_for_each_paradigm(tmp_path: Path) -> None:
    options = ("--tiny", "--train", "all", "--trials", "1")
    bench("memory", tmp_path, *options)
    rows, said = bench("memory", tmp_path, *options, "--activation-checkpointing")
    assert [(row["activation_checkpointing"], row["paradigm"], row["form"], row["trained"]) for row in rows] == [
        (recomputed, *variant, "all")
        for recomputed in (False, True)
        for variant in (("sliding_window", "dense"), ("dti", "packed"))
    ]
    for row in rows:
        assert (row["largest_rows"], row["trials"]) == (2, 1), "twice the usual, as a CPU's memory is not counted"
        assert row["largest_tokens"] == 2 * row["usual_tokens"]
        assert row["largest_tokens_per_second"] > 0
    assert "dti k=50, 2 rows" in said


@pytest.mark.slow
def test_the_training_step_is_measured_and_drawn(tmp_path: Path) -> None:
    picture = tmp_path / "step.png"
    options = ("--steps", "2", "--tiny", "--commit", "abc", "--profile", str(picture))
    rows, said = bench("train_step", tmp_path, *options)
    assert len(rows) == 13
    assert {(row["model"], row["trained"], row["lora_modules"]) for row in rows} == {("tiny", "lora", "all-linear")}
    assert {(row["paradigm"], row["form"]) for row in rows[:2]} == {
        ("sliding_window", "dense"),
        ("sliding_window", "packed"),
    }
    assert max(row["speedup"] for row in rows[:2]) == 1, "speed-ups are over the faster form"
    for row in rows:
        assert row["command"] == "python -m benchmarks.train_step --steps 2 --tiny"
        assert row["pass_ms_min"] <= row["pass_ms"] <= row["pass_ms_max"]
        assert row["targets_per_second"] > 0
        assert 0 < row["product_share"] < 1
        assert row["first_step_seconds"] > 0
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
    for module in (steps, timing):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    timed = SimpleNamespace(
        prepare=lambda variant: begun.append(variant) or steps.Measured(variant, [], 0.0, [1.0], [1.0]),
        step=lambda one: clock.append(clock.pop() + 1),
    )
    # A second to prepare each, then two to measure each: three variants need 9, four 12.
    measured = steps.warmed_up(timed, train_step.VARIANTS, 9, steps=2)
    assert begun == list(train_step.VARIANTS[:3])
    assert len(measured) == 3
    assert all(one.passes == one.updates == [] for one in measured)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("trainings", "sharding"), [(("lora", "all"), "none"), (("all",), "full")])
def test_scaling_is_measured_in_two_processes(tmp_path: Path, trainings: tuple[str, ...], sharding: str) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    options = ("--steps", "2", "--tiny", "--train", *trainings, "--sharding", sharding)
    rows, _ = bench("scaling", tmp_path, *options, launcher=launcher, result="scaling_2")
    found = [(row["trained"], row["sharding"], row["paradigm"], row["processes"]) for row in rows]
    assert found == [(train, sharding, paradigm, processes) for train in trainings
                     for paradigm in ("sliding_window", "dti") for processes in (1, 2)]  # fmt: skip
    for row in rows:
        assert row["command"].startswith("torchrun --nproc-per-node 2 -m benchmarks.scaling --steps 2 --tiny")
        assert row["efficiency"] > 0
        assert row["counted_steps"] >= 2
        each = row["targets_per_second_and_process"]
        assert row["targets_per_second"] == pytest.approx(row["processes"] * each, rel=1e-2)
    for alone, together in zip(rows[::2], rows[1::2], strict=True):
        assert alone["efficiency"] == 1
        equal = ("targets_per_process_and_step", "k", "tokens_per_interaction")
        assert [alone[key] for key in equal] == [together[key] for key in equal], "equal work a process"


@pytest.mark.long
@pytest.mark.slow
def test_a_whole_training_is_timed_in_a_process_of_its_own(tmp_path: Path) -> None:
    home, settings = tmp_path / "log", ["synth.users=60"]
    home.mkdir()
    harness.prepared(home, settings)
    for paradigm in ("sliding_window", "dti"):
        harness.run(harness.dti("pack", "--paradigm", paradigm, *harness.sets(settings)), home)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    options = ("--project", str(home), "--tiny", "--set", "training.epochs=0.1")
    rows, _ = bench("whole_training", tmp_path, *options)
    assert [(row["paradigm"], row["cache"], row["trained"]) for row in rows] == [
        ("sliding_window", "empty", "all"),
        ("dti", "empty", "all"),
    ]
    for row in rows:
        assert row["command"] == "python -m benchmarks.whole_training --project log --tiny --set training.epochs=0.1"
        assert 0 < row["compilation_seconds"] < row["first_step_seconds"] < row["seconds"]
        assert 0 < row["steps_seconds"] < row["seconds"]
        assert 0 < row["evaluation_seconds"] < row["seconds"]
        assert 0 < row["validation_auc"] < 1
    assert {rows[0][f"{of}_speedup"] for of in ("steps", "whole", "compiled")} == {1}
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before, "the home is only read"


@pytest.mark.slow
def test_a_whole_training_needs_no_library_that_a_gpu_machine_lacks() -> None:
    script = (
        "import sys; sys.modules |= dict.fromkeys(['duckdb', 'dagster', 'mlflow', 'great_expectations']);"
        "import benchmarks.whole_training, dti_pipeline.training.train"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=harness.ROOT)


@pytest.mark.slow
@pytest.mark.long
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
@pytest.mark.long
def test_a_start_is_measured_in_parts_that_add_up(tmp_path: Path) -> None:
    older = [{"model": name, "trained": "lora"} for name in ("another", "tiny")]
    (tmp_path / "first_step.json").write_text(json.dumps(older))
    rows, _ = bench("first_step", tmp_path, "--tiny", "--trained", "lora")
    assert [(row["model"], row.get("cache")) for row in rows] == [("another", None), ("tiny", "cold"), ("tiny", "warm")]
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
@pytest.mark.long
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


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("_interval_forward", "_forward", "_forward_0"), "attention forward"),
        (("_interval_backward_queries", "_interval_backward_keys", "_backward_queries", "_backward_keys_1"),
         "attention backward"),
        (("triton_poi_fused_forward_3", "fused_backward_keys"), kernels.REST),
    ],
)  # fmt: skip
def test_the_project_s_own_attention_is_attention(names: tuple[str, ...], kind: str) -> None:
    for name in names:
        found = kernels.by_kind([{"name": name, "ts": 0, "dur": 1000, "cat": "kernel"}], "gpu")
        assert {key for key, time in found.items() if time} == {kind}


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


@pytest.mark.slow
def test_attention_is_measured_alone(tmp_path: Path) -> None:
    rows, _ = bench("attention", tmp_path, "--tiny", "--prefix", "3")
    assert {row["form"] for row in rows} == {"bands", "dense causal"}
    assert {row["paradigm"] for row in rows} == set(names())
    assert all(row["prefix"] and row["forward_ms"] > 0 and row["backward_ms"] > 0 for row in rows)
