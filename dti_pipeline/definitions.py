"""Dagster's entry point: the assets, jobs, sensors and schedules that ``dg dev`` at the project's root loads."""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Sequence
from contextlib import suppress

import dagster as dg

from dti_pipeline.defs import assets, backtest, days, items
from dti_pipeline.defs.automation import JOBS, SCHEDULES, SENSORS
from dti_pipeline.defs.resources import Project, console
from dti_pipeline.defs.training import TrainingProcess
from dti_pipeline.errors import InputError
from dti_pipeline.paradigms import names


def executor() -> dg.ExecutorDefinition:
    """The executor of a run's steps: this process, since each uses every core, or what ``DTI_EXECUTOR=module:name``
    names. On a cluster, dagster-k8s gives each step a pod."""
    name = os.environ.get("DTI_EXECUTOR", "dagster:in_process_executor")
    with suppress(ImportError, AttributeError, ValueError):
        found = pkgutil.resolve_name(name)
        if isinstance(found, dg.ExecutorDefinition):
            return found
    raise InputError(f"DTI_EXECUTOR is {name!r}, which names no executor: dagster_k8s:k8s_job_executor is one")


def build(backtests: Sequence[str], paradigms: Sequence[str] = names()) -> dg.Definitions:
    """Everything that Dagster shows: ``paradigms`` as partitions, and the days of the log for ``backtests``."""
    return dg.Definitions(
        assets=[*assets.assets(paradigms), items.item_states, *backtest.assets(backtests)],
        jobs=JOBS,
        sensors=[*SENSORS, *(days.SENSORS if backtests else [])],
        schedules=SCHEDULES,
        loggers={"console": console},
        resources={"project": Project(), "pipes": TrainingProcess()},
        executor=executor(),
    )


defs = build(days.wanted(), assets.listed())
