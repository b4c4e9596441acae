"""Dagster's steps as jobs of a Ray cluster of several nodes, by the commands and the block of docs/howto/cluster.md."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dti_pipeline import artifacts, config, pipeline
from dti_pipeline.definitions import defs
from dti_pipeline.paths import Paths
from tests.project import ROOT

PAGE = (ROOT / "docs" / "howto" / "cluster.md").read_text()
RUN, _, TASKS = (yaml.safe_load(block) for block in re.findall(r"```\n(\S.*?)```", PAGE, re.DOTALL))
OVERRIDES = ["synth.users=60", "tracking.enabled=false", "packing.row_length=512"]


def test_what_uses_a_gpu_asks_for_one_and_nothing_else_does() -> None:
    steps = defs.resolve_implicit_global_asset_job_def().nodes
    asked = {step.name: step.definition.tags.get("dagster-ray/config") for step in steps}
    asked = {name: json.loads(tag) for name, tag in asked.items() if tag and "__" not in name}
    assert asked == {"model": {"num_gpus": 1}, "evaluation": {"num_gpus": 1}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes: the first takes jobs and has no processor to run them."""
    if importlib.util.find_spec("dagster_ray") is None:
        pytest.skip("dagster-ray is not installed: pip install dti-pipeline[dagster-ray]")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    for _ in range(2):
        cluster.add_node(num_cpus=1, memory=1 << 30)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.long
def test_steps_run_on_the_cluster_and_make_what_the_command_line_makes(cluster: Any, tmp_path: Path) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    address = f"http://{cluster.webui_url}"
    here, there = Paths(tmp_path / "here"), Paths(tmp_path / "there")
    for paths in (here, there):
        paths.home.mkdir()
        paths.params.write_bytes((ROOT / "params.yaml").read_bytes())
    ray = RUN["execution"]["config"]["ray"]
    ray |= {"address": address, "env_vars": [*ray["env_vars"], "PYTHONPATH"]}
    tasks = TASKS["resources"]["project"]["config"]["overrides"]
    settings = [*OVERRIDES, *tasks, "execution.memory_gib=0.5"]
    run = json.dumps({**RUN, "resources": {"project": {"config": {"overrides": settings}}}})
    (there.home / "run.yaml").write_text(run)
    (there.home / "dagster").mkdir()
    environment = {
        **os.environ,
        "DTI_HOME": str(there.home),
        "DAGSTER_HOME": str(there.home / "dagster"),
        "DTI_EXECUTOR": "dagster_ray:ray_executor",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for command in (
        ["job", "execute", "-m", "dti_pipeline.definitions", "-j", "prepare_log", "-c", "run.yaml"],
        ["asset", "materialize", "-m", "dti_pipeline.definitions", "--select", "shards", "--partition", "dti",
         "--config-json", run],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "dagster", *command],
            cwd=there.home, env=environment, capture_output=True, text=True, check=False, timeout=400,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
    jobs = [job for job in JobSubmissionClient(address).list_jobs() if job.submission_id]
    assert sorted(job.metadata["dagster/op"] for job in jobs) == ["checks", "events", "log", "shards", "tokens"]
    assert all(job.status == JobStatus.SUCCEEDED for job in jobs)
    assert cluster.head_node.node_id not in {job.driver_node_id for job in jobs}
    alone = config.load(here.params, OVERRIDES)
    for stage in pipeline.STAGES[:5]:
        pipeline.execute(stage, alone, here, "dti" if stage.per_paradigm else None)
    for folder in ("events", "tokens"):
        assert artifacts.folder_digest(getattr(there, folder)) == artifacts.folder_digest(getattr(here, folder))
    assert artifacts.folder_digest(there.shards("dti")) == artifacts.folder_digest(here.shards("dti"))
