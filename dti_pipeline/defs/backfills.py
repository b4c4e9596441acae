"""Backfills asked for from a terminal; Dagster's daemon takes them up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import dagster as dg
from dagster._core.execution.backfill import PartitionBackfill  # there is no public way but the page's own button
from dagster._core.utils import make_new_backfill_id
from dagster._time import get_current_timestamp

from dti_pipeline.definitions import build
from dti_pipeline.defs import days
from dti_pipeline.defs.automation import RETRIED


def request(instance: dg.DagsterInstance, assets: Iterable[dg.AssetKey], partitions: Sequence[str], title: str) -> str:
    """Add a backfill of assets over partitions to the daemon's queue; returns its id."""
    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id=make_new_backfill_id(),
        asset_graph=build(days.wanted()).resolve_asset_graph(),
        asset_selection=list(assets),
        partition_names=list(partitions),
        all_partitions=False,
        dynamic_partitions_store=instance,
        backfill_timestamp=get_current_timestamp(),
        tags=RETRIED,
        title=title,
        description=None,
        run_config=None,
    )
    instance.add_backfill(backfill)
    return backfill.backfill_id
