"""Checks of each asset's report, with the materialisation and from the report alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import dagster as dg

from dti_pipeline.defs.metadata import table
from dti_pipeline.evaluation.report import Comparison, Evaluation
from dti_pipeline.events.report import IngestReport, RawLog, SynthReport
from dti_pipeline.packing.report import PackReport, TokenizeReport
from dti_pipeline.pipeline import Stage
from dti_pipeline.training.report import TrainReport
from dti_pipeline.validation.report import ValidateReport

R = TypeVar("R")
#: Whether a check passed, and the figures it read.
Found = tuple[bool, dict[str, Any]]


@dataclass(frozen=True)
class Check(Generic[R]):
    """A named question about a stage's report. A blocking one stops what comes after in the same run."""

    name: str
    description: str
    ask: Callable[[R], Found]
    blocking: bool = True


def _figures(report: object, *names: str) -> dict[str, Any]:
    return {name: getattr(report, name) for name in names}


def _not_empty(report: SynthReport | RawLog) -> Found:
    seen = _figures(report, *(("files", "bytes") if isinstance(report, RawLog) else ("rows",)))
    return all(seen.values()), seen


def _texts_have_tokens(report: TokenizeReport) -> Found:
    # An interaction has a token for its label and, unless its text became nothing, some for its text.
    seen = _figures(report, "interactions", "tokens", "tokens_per_interaction", "texts", "texts_cut")
    return report.interactions > 0 and report.tokens_per_interaction > 1, seen


def _ledger(report: IngestReport) -> Found:
    accounted = report.kept + report.quarantined + report.duplicates
    return report.read == accounted, _figures(report, "read", "kept", "quarantined", "duplicates")


def _suite(suite: str) -> Callable[[ValidateReport], Found]:
    def ask(report: ValidateReport) -> Found:
        if suite not in report.suites:
            return True, {"expectations": 0, "note": "not asked of this batch"}
        failures = [failure for failure in report.failures if failure.suite == suite]
        seen: dict[str, Any] = asdict(report.suites[suite])
        columns = ("name", "column", "expected", "observed", "unexpected_count")
        if failures:
            seen["failures"] = table([_figures(failure, *columns) for failure in failures])
        seen |= {f"rows: {failure.name}": table(failure.failing_rows) for failure in failures if failure.failing_rows}
        return not failures, seen

    return ask


def _no_target_lost(report: PackReport) -> Found:
    columns = ("targets", "targets_in_log", "dropped", "dropped_reason")
    plans = report.plans.values()
    kept = all(
        plan.targets + plan.dropped == plan.targets_in_log and (plan.dropped == 0 or plan.dropped_reason)
        for plan in plans
    )
    rows = [{"plan": name, **_figures(plan, *columns)} for name, plan in report.plans.items()]
    return kept, {"dropped": sum(plan.dropped for plan in plans), "plans": table(rows)}


def _loss_is_finite(report: TrainReport) -> Found:
    return report.loss is not None, {"loss": "not a finite number" if report.loss is None else report.loss}


def _better_than_chance(report: Evaluation) -> Found:
    return (report.auc or 0) > 0.5, _figures(report, "auc", "auc_streaming")


def _above_the_floors(report: Comparison) -> Found:
    floor = max(value for value in report.baselines.values() if value is not None)
    rows = [{"paradigm": name, "auc": row.auc} for name, row in report.paradigms.items()]
    above = all((row.auc or 0) > floor for row in report.paradigms.values())
    return above, {"floor": floor, "paradigms": table(rows)}


def _not_worse(report: Comparison) -> Found:
    margin, lows = report.protocol.margin, [delta.ci_low for delta in report.auc_delta.values()]
    within = all(low is not None and low >= -margin for low in lows)
    worst = min((low for low in lows if low is not None), default=None)
    rows = [{"paradigm": name, **asdict(delta)} for name, delta in report.auc_delta.items()]
    seen: dict[str, Any] = (
        {"margin": margin, "differences": table(rows)} if rows else {"note": "nothing to compare with"}
    )
    return within, seen if worst is None else {"worst": worst, **seen}


def _champion(report: Comparison) -> Found:
    rows = [{"paradigm": name, **asdict(decision)} for name, decision in report.gate.items()]
    return report.champion is not None, {"champion": report.champion or "none", "gate": table(rows)}


CHECKS: dict[str, tuple[Check[Any], ...]] = {
    "synth": (Check("not_empty", "There is a log, and something in it.", _not_empty),),
    "ingest": (Check("ledger", "Rows read = kept + quarantined + duplicates.", _ledger),),
    "validate": tuple(
        Check(f"{suite}_rows" if suite in ("raw", "canonical") else suite, description, _suite(suite))
        for suite, description in {
            "raw": "Rows as they were read: columns, types, ranges, titles.",
            "canonical": "Interactions: unique, complete, ordered in time within each user.",
            "splits": "Every split has targets, and none learns from the future.",
            "batch": "Volume, users, share of clicks, share of rows in quarantine.",
            "drift": "Volume and share of clicks against the batch that was last accepted.",
        }.items()
    ),
    "tokenize": (
        Check("texts_have_tokens", "Interactions are there, and their texts became tokens.", _texts_have_tokens),
    ),
    "pack": (Check("no_target_lost", "Targets in the log = targets in the shards, in every plan.", _no_target_lost),),
    "train": (Check("loss_is_finite", "The loss of the last steps is a number.", _loss_is_finite),),
    "evaluate": (
        Check("better_than_chance", "The model's AUC on held-out targets is above 0.5.", _better_than_chance, False),
    ),
    "compare": (
        Check("above_the_floors", "Every paradigm's AUC is above the cost-free floors.", _above_the_floors, False),
        Check(
            "not_worse_than_sliding_window",
            "No paradigm may lose more AUC against the sliding window than `comparison.margin`, by its interval.",
            _not_worse,
            False,
        ),
        Check(
            "champion",
            "A model passed the gate (both of the above, by intervals): it gets the registry's alias `champion`.",
            _champion,
            False,
        ),
    ),
}


def specs(stage: Stage[Any]) -> list[dg.AssetCheckSpec]:
    """The checks of a stage's asset."""
    return [
        dg.AssetCheckSpec(check.name, asset=stage.asset, description=check.description, blocking=check.blocking)
        for check in CHECKS.get(stage.name, ())
    ]


def results(stage: Stage[Any], report: object) -> list[dg.AssetCheckResult]:
    """The results of a stage's checks of its report; one that does not block warns."""
    found = []
    for check in CHECKS.get(stage.name, ()):
        passed, seen = check.ask(report)
        severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
        found.append(dg.AssetCheckResult(passed=passed, check_name=check.name, severity=severity, metadata=seen))
    return found


def refuses(result: dg.AssetCheckResult) -> bool:
    """Whether a result stops what comes after."""
    return not result.passed and result.severity == dg.AssetCheckSeverity.ERROR
