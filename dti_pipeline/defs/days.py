"""Days of the log as partitions, and the sensors that follow the log: one adds its days, one trains the new ones.

Partitions are dynamic: only the log knows its days, their length is a parameter, and definitions load without a log.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from dti_pipeline import config
from dti_pipeline.defs.automation import RETRIED
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import BACKTEST

if TYPE_CHECKING:
    from dti_pipeline.backtest.begin import Beginning

log = logging.getLogger(__name__)
GROUP = "backtest"
NAME = "backtest_days"
DAYS = dg.DynamicPartitionsDefinition(name=NAME)
#: Tags of a run over several partitions.
FIRST, LAST = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def key(paradigm: str) -> dg.AssetKey:
    """The asset of a paradigm's backtest."""
    return dg.AssetKey([BACKTEST.asset, paradigm])


def listed() -> tuple[str, ...]:
    """Paradigms that have days here: `backtest.paradigms`. Raises InputError where params.yaml is wrong."""
    return config.load(Paths.from_env().params).backtest.paradigms


def wanted() -> tuple[str, ...]:
    """Those listed, for definitions, which have to load: none, with a warning, where params.yaml is wrong."""
    try:
        return listed()
    except InputError as error:
        log.warning("no days in Dagster: %s", error)
        return ()


def home() -> Beginning:
    """Tokens and days of the project's home. Raises InputError where there are none yet."""
    from dti_pipeline.backtest.begin import begin  # numpy, Arrow, numba: not while definitions load

    paths = Paths.from_env()
    return begin(config.load(paths.params), paths)


Change = dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest


def changes(known: Sequence[str], days: Sequence[str]) -> list[Change]:
    """What makes the partitions the log's days, in their order.

    Where days came before known ones, all are deleted first, and the next call adds them: Dagster refuses both at once.
    """
    stay = [day for day in known if day in days]
    ordered = stay == list(days[: len(stay)])
    gone = [day for day in known if day not in days] if ordered else list(known)
    new = days[len(stay) :] if ordered else []
    return [
        *([DAYS.build_delete_request(gone)] if gone else []),
        *([DAYS.build_add_request(list(new))] if new else []),
    ]


def follow(instance: dg.DagsterInstance, days: Sequence[str]) -> None:
    """Make the partitions the log's days now."""
    while wanted := changes(instance.get_dynamic_partitions(NAME), days):
        apply(instance, wanted)


def apply(instance: dg.DagsterInstance, wanted: Iterable[Change]) -> None:
    """What Dagster's daemon does with a sensor's changes."""
    for change in wanted:
        if isinstance(change, dg.AddDynamicPartitionsRequest):
            instance.add_dynamic_partitions(NAME, change.partition_keys)
        else:
            for day in change.partition_keys:
                instance.delete_dynamic_partition(NAME, day)


def _state(*more: str) -> str:
    """Changes with the log, its tokens and the parameters. Cost: three small files."""
    paths = Paths.from_env()
    manifests = (folder / "manifest.json" for folder in (paths.events, paths.tokens))
    found = hashlib.md5("\n".join(more).encode())
    for path in (paths.params, *manifests):
        found.update(path.read_bytes() if path.is_file() else b"none")
    return found.hexdigest()


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Makes the partitions of `backtest` the days of the log that `dti tokenize` has read. Starts nothing.",
)
def log_days(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Ask for the partitions that the log has and Dagster has not."""
    known = context.instance.get_dynamic_partitions(NAME)
    state = _state(*known)
    if state == context.cursor:
        return dg.SkipReason("the log is the same as at the last look")
    try:
        days = home().days.names()
    except InputError as error:
        return dg.SkipReason(str(error))
    asked = changes(known, days)
    if not asked:
        context.update_cursor(state)
        return dg.SkipReason(f"every day of the log is there, from {days[0]} to {days[-1]}")
    return dg.SensorResult(skip_reason=f"days {days[0]} to {days[-1]}", dynamic_partitions_requests=asked)


@dg.sensor(
    target=dg.AssetSelection.groups(GROUP),
    minimum_interval_seconds=60,
    description="When the log has new days, trains them for each paradigm whose backtest has begun. A first backfill is"
    " a person's decision.",
)
def new_days(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Request, once for each state of the log, one run of the days that are not trained."""
    state = _state()
    if state == context.cursor:
        return dg.SkipReason("the log is the same as at the last look")
    try:
        start = home()
    except InputError as error:
        return dg.SkipReason(str(error))
    days, known = start.days.names(), context.instance.get_dynamic_partitions(NAME)
    if list(known) != days:
        return dg.SkipReason("waiting for `log_days` to make the partitions the days of the log")
    context.update_cursor(state)
    left = {paradigm: start.left(paradigm) for paradigm in start.config.backtest.paradigms}
    begun = {paradigm: new for paradigm, new in left.items() if new != days}
    if not begun:
        return dg.SkipReason("no backtest of `backtest.paradigms` has begun: launch its first days as a backfill")
    runs = [
        dg.RunRequest(
            run_key=f"{paradigm} {state}",
            asset_selection=[key(paradigm)],
            tags={FIRST: new[0], LAST: new[-1], **RETRIED},
        )
        for paradigm, new in begun.items()
        if new
    ]
    if not runs:
        return dg.SkipReason(f"{', '.join(begun)}: trained to {days[-1]}, the last day that has a next one")
    return dg.SensorResult(run_requests=runs)


SENSORS = [log_days, new_days]
