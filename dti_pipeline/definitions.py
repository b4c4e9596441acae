"""Dagster's entry point: assets, jobs, sensors and schedules, which ``dg dev`` at the project's root loads.

They are listed, not discovered: a module with a ``@dg.definitions`` function silently loses its assets.
"""

from __future__ import annotations

import importlib
import os

import dagster as dg

from dti_pipeline.defs.assets import ASSETS
from dti_pipeline.defs.automation import SCHEDULES, SENSORS
from dti_pipeline.defs.console import console
from dti_pipeline.defs.jobs import JOBS
from dti_pipeline.defs.resources import Project
from dti_pipeline.defs.training import TrainingProcess
from dti_pipeline.errors import InputError


def executor() -> dg.ExecutorDefinition:
    """The executor of a run's steps: this process, or the one that ``DTI_EXECUTOR=module:name`` names.

    A run is a chain of stages that each use every core, so a process for each would only add its start. Training has a
    process of its own under every executor. On a cluster, dagster-k8s gives each step a pod.
    """
    name = os.environ.get("DTI_EXECUTOR", "dagster:in_process_executor")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not isinstance(found, dg.ExecutorDefinition):
        raise InputError(f"DTI_EXECUTOR is {name!r}, which names no executor: dagster_k8s:k8s_job_executor is one")
    return found


defs = dg.Definitions(
    assets=ASSETS,
    jobs=JOBS,
    sensors=SENSORS,
    schedules=SCHEDULES,
    loggers={"console": console},
    resources={"project": Project(), "pipes": TrainingProcess()},
    executor=executor(),
)
