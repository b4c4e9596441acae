"""``python -m dti_pipeline.defs.whole_comparison``: a backfill of all stages, which the running Dagster takes up.

The shared assets are one run, then comes one for each of the ``paradigms`` in params.yaml, then the comparison.
"""

from __future__ import annotations

import dagster as dg

from dti_pipeline import config
from dti_pipeline.defs import backfills
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import STAGES


def request(instance: dg.DagsterInstance, paradigms: list[str]) -> str:
    """Add the backfill to the queue of Dagster's daemon; returns its id."""
    assets = [dg.AssetKey(stage.asset) for stage in STAGES]
    return backfills.request(instance, assets, paradigms, "whole comparison")


if __name__ == "__main__":
    asked = list(config.load(Paths.from_env().params).paradigms)
    with dg.DagsterInstance.get() as instance:
        print(f"Backfill {request(instance, asked)} of {', '.join(asked)}: it runs while Dagster does (`make ui`)")
