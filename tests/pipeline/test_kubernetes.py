"""What a cluster is told: which steps need a GPU, that each step may be a pod of its own, and how those pods look."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from unittest import mock

import dagster as dg
import pytest
import yaml
from dagster._config import process_config, resolve_to_config_type
from dagster_k8s import K8sRunLauncher, k8s_job_executor
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig, construct_dagster_k8s_job, get_user_defined_k8s_config

from dti_pipeline import definitions
from dti_pipeline.defs.train_process import SAVE_SECONDS
from dti_pipeline.errors import InputError
from dti_pipeline.paradigms import names
from tests.project import ROOT

STEPS = {
    node.name: node.definition for node in definitions.build(names()).resolve_implicit_global_asset_job_def().nodes
}
#: The documented blocks: the chart's values, and what a launch may add.
PAGE = (ROOT / "docs" / "howto" / "kubernetes.md").read_text()
VALUES, LAUNCH = (yaml.safe_load(block) for block in re.findall(r"```\n(\S.*?)```", PAGE, re.DOTALL))
(DEPLOYMENT,) = VALUES["dagster-user-deployments"]["deployments"]


@pytest.fixture(scope="module")
def launcher() -> K8sRunLauncher:
    """The run launcher that the chart makes of its values."""
    every_pod = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    with mock.patch("dagster_k8s.launcher.load_kubernetes_config"):  # no cluster here
        return K8sRunLauncher(
            service_account_name="dagster",
            instance_config_map="dagster-instance",
            dagster_home="/opt/dagster",
            job_image=":".join(DEPLOYMENT["image"].values()),
            volumes=DEPLOYMENT["volumes"],
            volume_mounts=DEPLOYMENT["volumeMounts"],
            run_k8s_config={"pod_spec_config": every_pod["podSpecConfig"]},
        )


def pod(
    launcher: K8sRunLauncher, run_tags: Mapping[str, str] | None = None, *step: UserDefinedDagsterK8sConfig
) -> dict[str, Any]:
    """The specification of a run's pod; with what a step asks for, of the step's."""
    run = dg.DagsterRun(job_name="one_paradigm", tags=run_tags)
    context = K8sContainerContext.create_for_run(run, launcher, include_run_tags=True)
    for asked in step:
        context = context.merge(K8sContainerContext(run_k8s_config=asked))
    config = context.get_k8s_job_config(None, launcher)
    made = construct_dagster_k8s_job(config, ["dagster", "api"], "name", context.run_k8s_config)
    specification: dict[str, Any] = made.to_dict()["spec"]["template"]["spec"]
    return specification


def asks(step: str) -> UserDefinedDagsterK8sConfig:
    return get_user_defined_k8s_config(STEPS[step].tags)


def gpus(specification: dict[str, Any]) -> int:
    limits = (specification["containers"][0]["resources"] or {}).get("limits") or {}
    return int(limits.get("nvidia.com/gpu", 0))


def test_what_uses_a_gpu_asks_for_one_and_nothing_else_does(launcher: K8sRunLauncher) -> None:
    needed = {step: gpus(pod(launcher, None, asks(step))) for step in STEPS}
    backtests = {f"backtest__{paradigm}": 1 for paradigm in names()}
    assert {step: count for step, count in needed.items() if count} == {"model": 1, "evaluation": 1, **backtests}


@pytest.mark.parametrize("job", ["prepare_log", "one_paradigm"])
def test_a_jobs_own_pod_asks_for_no_gpu(launcher: K8sRunLauncher, job: str) -> None:
    assert gpus(pod(launcher, definitions.defs.resolve_job_def(job).run_tags)) == 0


def test_a_pod_has_the_home_and_time_to_save(launcher: K8sRunLauncher) -> None:
    step = pod(launcher, None, asks("model"))
    assert step["termination_grace_period_seconds"] > SAVE_SECONDS
    (claim,) = [volume["name"] for volume in step["volumes"] if volume["persistent_volume_claim"]]
    assert {mount["mount_path"]: mount["name"] for mount in step["containers"][0]["volume_mounts"]}["/srv/dti"] == claim


def test_a_launch_may_ask_for_more_gpus_and_another_node(launcher: K8sRunLauncher) -> None:
    wished = LAUNCH["execution"]["config"]
    checked = process_config(resolve_to_config_type(k8s_job_executor.config_schema.config_type), wished)
    assert checked.success, checked.errors
    own = UserDefinedDagsterK8sConfig.from_dict(wished["per_step_k8s_config"]["model"])
    step = pod(launcher, None, asks("model"), own)
    assert gpus(step) == 4
    assert step["node_selector"] == {"accelerator": "h100"}


def test_the_executor_is_this_process_unless_the_deployment_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert definitions.defs.executor is dg.in_process_executor
    (named,) = [variable["value"] for variable in DEPLOYMENT["env"] if variable["name"] == "DTI_EXECUTOR"]
    monkeypatch.setenv("DTI_EXECUTOR", named)
    assert definitions.executor() is k8s_job_executor


@pytest.mark.parametrize("name", ["dagster", "dagster:nothing", "no_such_module:executor", "dagster:asset", ":"])
def test_a_name_of_no_executor_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DTI_EXECUTOR", name)
    with pytest.raises(InputError, match="which names no executor: dagster_k8s:k8s_job_executor is one"):
        definitions.executor()
