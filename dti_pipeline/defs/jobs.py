"""Runs with a name, for the launchpad, schedules and ``dg launch --job``."""

from __future__ import annotations

import dagster as dg

from dti_pipeline.defs.assets import BY_PARADIGM
from dti_pipeline.pipeline import STAGES

prepare_log = dg.define_asset_job(
    "prepare_log",
    selection=[stage.asset for stage in STAGES if not stage.per_paradigm and stage.name != "compare"],
    description="Raw log to tokens: what every paradigm shares.",
)
one_paradigm = dg.define_asset_job(
    "one_paradigm",
    selection=[stage.asset for stage in STAGES if stage.per_paradigm],
    partitions_def=BY_PARADIGM,
    description="Pack, train and judge one paradigm, on tokens that are there.",
)

JOBS = [prepare_log, one_paradigm]
