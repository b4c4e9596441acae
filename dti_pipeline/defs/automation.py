"""Jobs, and what runs without a person: new log files, every night, the refresh of cheap assets.

Nothing of it trains, and all sensors and schedules are off until somebody turns them on, but the one that ends killed
runs.
"""

from __future__ import annotations

import hashlib
import json
from itertools import takewhile

import dagster as dg

from dti_pipeline import config
from dti_pipeline.address import is_address
from dti_pipeline.config import Config
from dti_pipeline.defs.processes import killed_runs
from dti_pipeline.errors import InputError
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import STAGES

SHARED = [stage.asset for stage in takewhile(lambda stage: not stage.per_paradigm, STAGES)]
PER_PARADIGM = [stage.asset for stage in STAGES if stage.per_paradigm]
COMPARISON = [stage.asset for stage in STAGES if stage.asset not in (*SHARED, *PER_PARADIGM)]
#: Dagster's daemon starts a run again, from the step it was in, when the run's own process was killed.
RETRIED = {"dagster/max_retries": "2", "dagster/retry_strategy": "FROM_FAILURE"}

prepare_log = dg.define_asset_job(
    "prepare_log", selection=SHARED, description="Raw log to tokens: what every paradigm shares. Minutes, no GPU."
)
one_paradigm = dg.define_asset_job(
    "one_paradigm",
    selection=PER_PARADIGM,
    tags=RETRIED,
    description="Pack, train and evaluate one paradigm, on tokens that are there.",
)


def after(asset: str) -> dg.AutomationCondition[dg.AssetKey | dg.AssetCheckKey]:
    """Met when that input was made in a run without this asset, whatever happened to the other inputs."""
    updated = dg.AutomationCondition.newly_updated() & ~dg.AutomationCondition.executed_with_root_target()
    return (
        dg.AutomationCondition.any_deps_match(updated).allow(dg.AssetSelection.assets(asset)).since_last_handled()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    ).with_label(f"after {asset}")


#: An asset that exists is made again when an input was; a missing one is not begun.
_REFRESH = (
    dg.AutomationCondition.eager()
    & dg.AutomationCondition.all_deps_blocking_checks_passed()
    & ~dg.AutomationCondition.missing()
).with_label("refresh")

#: By stage; the log comes from outside, the model from a person. An evaluation follows its model, not the log: after a
#: change of the log the old model belongs to other tokens.
CONDITIONS: dict[str, dg.AutomationCondition[dg.AssetKey | dg.AssetCheckKey]] = {
    **dict.fromkeys(("ingest", "validate", "tokenize", "pack"), _REFRESH),
    "evaluate": after("model"),
    "compare": after("evaluation"),
}

refresh_cheap_stages = dg.AutomationConditionSensorDefinition(
    "refresh_cheap_stages",
    target=dg.AssetSelection.all(),
    description="Makes again what is cheap and out of date: events, checks, tokens, shards; after a training its"
    " evaluation and the comparison. Never trains.",
)

nightly = dg.ScheduleDefinition(
    name="nightly",
    job=prepare_log,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    description="Raw log to tokens at three in the morning, UTC, for logs that grow in place. Never trains.",
)


#: Suffixes of files that are still being written.
UNFINISHED = (".part", ".partial", ".tmp", ".temp", ".crdownload", ".filepart", ".version")


@dg.sensor(
    job=prepare_log,
    minimum_interval_seconds=30,
    description="Ingests the raw log again when `events.path` (in data/raw, say) has new or changed files, once they"
    " have been the same for two looks. Never trains.",
)
def new_log_files(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request the cheap stages once for each state of the raw log's files; a file still being written changes it.

    The cursor holds the state that was last seen and the one that was last requested.
    """
    paths = Paths.from_env()
    try:
        settings = config.load(paths.params)
    except InputError as error:
        return dg.SkipReason(str(error))
    if settings.events.source == "synthetic":
        return dg.SkipReason("events.source is synthetic: no file comes from outside, the asset `log` makes it")
    try:
        files = _files(settings, paths)
    except InputError as error:
        return dg.SkipReason(str(error))
    if not files:
        return dg.SkipReason(f"{settings.events.path} (params key events.path) has no file yet")
    state = hashlib.md5(json.dumps(files).encode()).hexdigest()
    cursor = json.loads(context.cursor) if context.cursor else {}
    if state == cursor.get("requested"):
        return dg.SkipReason(f"nothing new at {settings.events.path}")
    if state != cursor.get("seen"):
        context.update_cursor(json.dumps({**cursor, "seen": state}))
        return dg.SkipReason(f"{settings.events.path} has changed: waiting for it to be the same at the next look")
    context.update_cursor(json.dumps({"seen": state, "requested": state}))
    return dg.RunRequest(run_key=state, tags={"log.files": str(len(files)), "log.state": state})


def _files(settings: Config, paths: Paths) -> list[tuple[str, int, int | str]]:
    """Names, bytes and times of modification of the raw log's finished files, hidden ones left out; none is read. Of
    objects in a store: their tags, which are others for other bytes."""
    if is_address(settings.events.path):
        from dti_pipeline.events import remote  # reading a log needs libraries that Dagster's page does without

        return [(str(address), one.size, one.etag) for address, one in remote.listed(settings.events).items()]
    root = paths.resolve(settings.events.path)
    found: list[tuple[str, int, int | str]] = []
    for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
        parts = path.relative_to(root).parts
        if path.is_file() and not path.name.endswith(UNFINISHED) and not any(part.startswith(".") for part in parts):
            found.append(("/".join(parts), path.stat().st_size, path.stat().st_mtime_ns))
    return found


JOBS = [prepare_log, one_paradigm]
SENSORS = [new_log_files, refresh_cheap_stages, killed_runs]
SCHEDULES = [nightly]
