"""``python -m dti_pipeline.defs.whole_comparison``: a backfill of all assets, which the running Dagster takes up.

The shared assets are one run, then comes one for each of the ``paradigms`` in params.yaml, then the comparison.
"""

from __future__ import annotations

import dagster as dg
from dagster._core.execution.backfill import PartitionBackfill  # there is no public way but the page's own button
from dagster._core.utils import make_new_backfill_id
from dagster._time import get_current_timestamp

from dti_pipeline import config
from dti_pipeline.definitions import defs
from dti_pipeline.defs.automation import RETRIED
from dti_pipeline.paths import Paths


def request(instance: dg.DagsterInstance, paradigms: list[str]) -> str:
    """Add the backfill to the queue of Dagster's daemon; returns its id."""
    graph = defs.resolve_asset_graph()
    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id=make_new_backfill_id(),
        asset_graph=graph,
        asset_selection=list(graph.materializable_asset_keys),
        partition_names=paradigms,
        all_partitions=False,
        dynamic_partitions_store=instance,
        backfill_timestamp=get_current_timestamp(),
        tags=RETRIED,
        title="whole comparison",
        description=None,
        run_config=None,
    )
    instance.add_backfill(backfill)
    return backfill.backfill_id


if __name__ == "__main__":
    asked = list(config.load(Paths.from_env().params).paradigms)
    with dg.DagsterInstance.get() as instance:
        print(f"Backfill {request(instance, asked)} of {', '.join(asked)}: it runs while Dagster does (`make ui`)")
