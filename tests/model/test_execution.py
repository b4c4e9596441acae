"""The execution plan: each choice with its reason, from the model's traits and the device."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dti_pipeline.modeling.network.execution import WIDE, WIDE_FOR_GRAPHS, ExecutionPlan, Traits

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NARROW = Traits(
    width=128,
    head_width=32,
    last_layer_at_sums=True,
    projections_biased=False,
    forgets=True,
    embeds_tokens_alone=True,
)
LARGE = dataclasses.replace(NARROW, width=WIDE_FOR_GRAPHS, head_width=128)


def on(plan: ExecutionPlan) -> set[str]:
    return {name for name, choice in plan.choices.items() if choice}


def test_a_narrow_model_on_a_gpu_saves_launches() -> None:
    plan = ExecutionPlan.make(NARROW, CUDA, cuda_graph=True)
    wanted = {"launch_bound", "compiled_layers", "compiled_surroundings", "cuda_graph"}
    assert on(plan) - {"sum_kernel", "attention_kernel"} == wanted


def test_a_wide_model_on_a_gpu_saves_arithmetic() -> None:
    plan = ExecutionPlan.make(LARGE, CUDA, torch.bfloat16, cuda_graph=True)
    wanted = {"last_layer_at_sums", "distinct_tokens", "compiled_layers"}
    assert on(plan) - {"sum_kernel", "attention_kernel"} == wanted
    assert "arithmetic takes the time" in plan.cuda_graph.reason


def test_between_the_two_a_graph_and_less_arithmetic_both_pay() -> None:
    traits = dataclasses.replace(NARROW, width=WIDE)
    wanted = {"last_layer_at_sums", "distinct_tokens", "compiled_layers", "cuda_graph"}
    assert on(ExecutionPlan.make(traits, CUDA, cuda_graph=True)) - {"sum_kernel", "attention_kernel"} == wanted


def test_on_a_cpu_nothing_is_compiled() -> None:
    assert on(ExecutionPlan.make(NARROW, CPU, cuda_graph=True)) == {"last_layer_at_sums", "distinct_tokens"}


@pytest.mark.parametrize(
    ("circumstances", "traits", "reason"),
    [
        ({"cuda_graph": False}, NARROW, "training.cuda_graph is false"),
        ({"sharded": True}, NARROW, "weights are sharded"),
        ({}, LARGE, "arithmetic takes the time"),
    ],
)
def test_a_graph_is_left_out_for_a_reason(circumstances: dict[str, int], traits: Traits, reason: str) -> None:
    plan = ExecutionPlan.make(traits, CUDA, **{"cuda_graph": True, **circumstances})
    assert not plan.cuda_graph
    assert reason in plan.cuda_graph.reason


@pytest.mark.parametrize(
    ("changes", "choice"),
    [
        ({"last_layer_at_sums": False}, "last_layer_at_sums"),
        ({"forgets": False}, "distinct_tokens"),
        ({"embeds_tokens_alone": False}, "distinct_tokens"),
        ({"projections_biased": True}, "sum_kernel"),
        ({"head_width": 512}, "sum_kernel"),
        ({"head_width": 1024}, "attention_kernel"),
    ],
)
def test_a_trait_takes_a_choice_away_with_its_reason(
    changes: dict[str, bool], choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dti_pipeline.modeling.network.execution.find_spec", lambda name: object())
    assert ExecutionPlan.make(LARGE, CUDA, torch.bfloat16).choices[choice]
    plan = ExecutionPlan.make(dataclasses.replace(LARGE, **changes), CUDA, torch.bfloat16)
    assert not plan.choices[choice]
    assert plan.choices[choice].reason


def test_a_plan_is_said_line_by_line_and_kept_whole() -> None:
    plan = ExecutionPlan.make(LARGE, CUDA, torch.bfloat16).without("compiled_layers", "the compiler raised")
    assert "compiled layers: no (the compiler raised)" in plan.lines()
    said = ", ".join(line.partition(":")[0] for line in plan.lines()).split(", ")
    assert len(said) == len(set(said)) == len(plan.choices)
    on_cpu = ExecutionPlan.make(LARGE, torch.device("cpu"), torch.float32)
    (line,) = (line for line in on_cpu.lines() if "no CUDA device" in line)
    assert line.startswith("attention kernel, sum kernel, ")
    kept = plan.plain()
    assert kept["device"] == "cuda"
    assert kept["compute"] == "bfloat16"
    assert kept["compiled_layers"] == {"on": False, "reason": "the compiler raised"}
