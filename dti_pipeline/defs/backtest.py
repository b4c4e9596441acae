"""The backtest of each paradigm as an asset, partitioned by the days of the log.

Without ``from __future__ import annotations``: Dagster reads the annotations of an asset function as they stand.
"""

import warnings
from collections.abc import Iterable, Iterator

import dagster as dg

from dti_pipeline import pipeline
from dti_pipeline.backtest.report import Day
from dti_pipeline.defs import checks, dvc_record, metadata, processes
from dti_pipeline.defs.assets import ASKS_FOR_GPU, code_reference, code_version
from dti_pipeline.defs.days import DAYS, GROUP, key
from dti_pipeline.defs.resources import Project, Work
from dti_pipeline.errors import CheckFailed, InputError, Interrupted
from dti_pipeline.pipeline import BACKTEST


def build(paradigm: str) -> dg.AssetsDefinition:
    """The backtest of a paradigm: one run trains all days that it is asked for, in order."""

    @dg.asset(
        key=key(paradigm),
        deps=["events", "tokens"],
        partitions_def=DAYS,
        backfill_policy=dg.BackfillPolicy.single_run(),
        output_required=False,  # each day is told when it is trained
        description=f"{BACKTEST.summary} A day that is trained is not trained again.\n\nCommand line: `dti"
        f" {BACKTEST.name} --paradigm {paradigm}`. Makes: `{BACKTEST.outs[0].format(paradigm=paradigm)}`.",
        group_name=GROUP,
        owners=["team:ctr"],
        kinds={"pytorch", "mlflow"},
        metadata=code_reference(BACKTEST),
        code_version=code_version(BACKTEST),
        pool="gpu",
        op_tags=ASKS_FOR_GPU,
        check_specs=checks.specs(BACKTEST, key(paradigm)),
    )
    def compute(context: dg.AssetExecutionContext, project: Project) -> Iterator[dg.AssetCheckResult]:
        processes.sign(context)
        try:
            yield from _train(context, project.open(), paradigm)
        except Interrupted as error:
            raise dg.DagsterExecutionInterruptedError(str(error)) from None
        except (InputError, CheckFailed) as error:
            # Failed on purpose: told as such, without a retry, since the same input would fail again.
            raise dg.Failure(description=str(error), allow_retries=False) from None

    return compute


def _train(context: dg.AssetExecutionContext, work: Work, paradigm: str) -> Iterator[dg.AssetCheckResult]:
    """Train the asked days that are not trained, and tell of each; of the last one at the end, with the pictures."""
    asked, last = context.partition_keys, list[Day]()

    def tell(**more: object) -> None:
        for day in last:
            shown = {**metadata.of_day(day), **more}
            context.log_event(dg.AssetMaterialization(key(paradigm), partition=day.day, metadata=shown))

    def hear(day: Day, now: bool) -> None:
        if now:
            context.log.info(day.line())
        if now or day.day in asked:
            tell()
            last[:] = [day]

    from dti_pipeline.backtest.begin import begin  # numpy, Arrow, numba: not while definitions load

    try:
        report = pipeline.execute(BACKTEST, work.config, work.paths, paradigm, heard=hear, asked=asked)
    except BaseException:
        tell()
        raise
    if report.note:
        context.log.warning(report.note)
    tell(**metadata.of_backtest(report, work.paths.backtest(paradigm)))
    if left := begin(work.config, work.paths).left(paradigm):
        context.log.info(f"DVC does not record it before all days are trained: {left[0]} is the next")
    else:
        dvc_record.record(BACKTEST, work, paradigm, context.log)
    yield from checks.results(BACKTEST, report)


def assets(paradigms: Iterable[str]) -> list[dg.AssetsDefinition]:
    """The backtests of these paradigms."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # of the backfill policy
        return [build(paradigm) for paradigm in paradigms]
