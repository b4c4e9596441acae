"""What a cluster is told: which steps need a GPU, and that each step may be a pod of its own."""

from __future__ import annotations

import json

import dagster as dg
import pytest

from dti_pipeline import definitions
from dti_pipeline.errors import InputError


def test_what_uses_a_gpu_asks_for_one_and_nothing_else_does() -> None:
    graph = definitions.defs.resolve_implicit_global_asset_job_def()
    asking = {node.name: node.definition.tags.get("dagster-k8s/config") for node in graph.nodes}
    limits = {
        name: json.loads(config)["container_config"]["resources"]["limits"] for name, config in asking.items() if config
    }
    assert limits == {"model": {"nvidia.com/gpu": 1}, "evaluation": {"nvidia.com/gpu": 1}}


def test_the_executor_is_this_process_unless_the_deployment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert definitions.defs.executor is dg.in_process_executor
    monkeypatch.setenv("DTI_EXECUTOR", "dagster:multiprocess_executor")
    assert definitions.executor() is dg.multiprocess_executor


@pytest.mark.parametrize("name", ["dagster", "dagster:nothing", "no_such_module:executor", "dagster:asset", ":"])
def test_a_name_of_no_executor_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTI_EXECUTOR", name)
    with pytest.raises(InputError, match="which names no executor: dagster_k8s:k8s_job_executor is one"):
        definitions.executor()
