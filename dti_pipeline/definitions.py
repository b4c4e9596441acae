"""What Dagster loads: ``dg dev`` at the project's root opens this.

The definitions are listed, not discovered: a module with a ``@dg.definitions`` function silently loses its assets.
"""

from __future__ import annotations

import dagster as dg

from dti_pipeline.defs.assets import ASSETS
from dti_pipeline.defs.automation import SCHEDULES, SENSORS
from dti_pipeline.defs.console import console
from dti_pipeline.defs.jobs import JOBS
from dti_pipeline.defs.resources import Project
from dti_pipeline.defs.training import TrainingProcess

defs = dg.Definitions(
    assets=ASSETS,
    jobs=JOBS,
    sensors=SENSORS,
    schedules=SCHEDULES,
    loggers={"console": console},
    resources={"project": Project(), "pipes": TrainingProcess()},
    # A run is a chain of stages, each of which uses what cores there are; a process for each would only add its
    # start. Training has its own process whatever the executor is.
    executor=dg.in_process_executor,
)
