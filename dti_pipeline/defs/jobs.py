"""Jobs: assets that are launched together under a name, in the launchpad, by a schedule, by ``dg launch --job``."""

from __future__ import annotations

import dagster as dg

from dti_pipeline.defs.assets import BY_PARADIGM
from dti_pipeline.pipeline import COMPARE, STAGES

SHARED = [stage.asset for stage in STAGES if not stage.per_paradigm and stage is not COMPARE]
PER_PARADIGM = [stage.asset for stage in STAGES if stage.per_paradigm]
COMPARISON = [COMPARE.asset]
#: Dagster's daemon starts a run again, from the step it was in, when the run's own process was killed; a training then
#: continues from its checkpoint. A run that failed or was cancelled is left to a person.
RETRIED = {"dagster/max_retries": "2", "dagster/retry_strategy": "FROM_FAILURE"}

prepare_log = dg.define_asset_job(
    "prepare_log", selection=SHARED, description="Raw log to tokens: what every paradigm shares. Minutes, no GPU."
)
one_paradigm = dg.define_asset_job(
    "one_paradigm",
    selection=PER_PARADIGM,
    partitions_def=BY_PARADIGM,
    tags=RETRIED,
    description="Pack, train and evaluate one paradigm, on tokens that are there.",
)
JOBS = [prepare_log, one_paradigm]
