"""Asset checks: what each stage's report alone can say of its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import dagster as dg

from dti_pipeline.backtest.report import BacktestReport
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
class Check:
    """A named question about a stage's report; unless it is blocking, it only warns."""

    name: str
    description: str
    ask: Callable[[Any], Found]
    blocking: bool = True  # stops what comes after in the same run


CHECKS: dict[str, list[Check]] = {}


def _check(stage: str, blocking: bool = True) -> Callable[[Callable[[R], Found]], Callable[[R], Found]]:
    """Adds a function to a stage's checks, under its name and with its docstring as the description."""

    def add(ask: Callable[[R], Found]) -> Callable[[R], Found]:
        CHECKS.setdefault(stage, []).append(Check(ask.__name__, str(ask.__doc__), ask, blocking))
        return ask

    return add


def _figures(report: object, *names: str) -> dict[str, Any]:
    return {name: getattr(report, name) for name in names}


@_check("synth")
def not_empty(report: SynthReport | RawLog) -> Found:
    """There is a log, and something in it."""
    seen = _figures(report, *(("files", "bytes") if isinstance(report, RawLog) else ("rows",)))
    return all(seen.values()), seen


@_check("ingest")
def ledger(report: IngestReport) -> Found:
    """Rows read = kept + quarantined + duplicates."""
    accounted = report.kept + report.quarantined + report.duplicates
    return report.read == accounted, _figures(report, "read", "kept", "quarantined", "duplicates")


def _suite(suite: str) -> Callable[[ValidateReport], Found]:
    def ask(report: ValidateReport) -> Found:
        if suite not in report.suites:
            return True, {"expectations": 0, "note": "not asked of this batch"}
        failures = [failure for failure in report.failures if failure.suite == suite]
        columns = ("name", "column", "expected", "observed", "unexpected_count")
        seen: dict[str, Any] = asdict(report.suites[suite])
        seen |= {"failures": table([_figures(failure, *columns) for failure in failures])} if failures else {}
        seen |= {f"rows: {failure.name}": table(failure.failing_rows) for failure in failures if failure.failing_rows}
        return not failures, seen

    return ask


CHECKS["validate"] = [
    Check("raw_rows", "Rows as they were read: columns, types, ranges, titles.", _suite("raw")),
    Check("canonical_rows", "Interactions: unique, complete, ordered in time within each user.", _suite("canonical")),
    Check("splits", "Every split has targets, and none learns from the future.", _suite("splits")),
    Check("batch", "Volume, users, share of clicks, share of rows in quarantine.", _suite("batch")),
    Check("drift", "Volume and share of clicks against the batch that was last accepted.", _suite("drift")),
]


@_check("tokenize")
def texts_have_tokens(report: TokenizeReport) -> Found:
    """Interactions are there, and their texts became tokens."""
    # An interaction has a token for its label and, unless its text became nothing, some for its text.
    seen = _figures(report, "interactions", "tokens", "tokens_per_interaction", "texts", "texts_cut")
    return report.interactions > 0 and report.tokens_per_interaction > 1, seen


@_check("pack")
def no_target_lost(report: PackReport) -> Found:
    """Targets in the log = targets in the shards, in every plan."""
    columns = ("targets", "targets_in_log", "dropped", "dropped_reason")
    plans = report.plans.values()
    counted = all(plan.targets + plan.dropped == plan.targets_in_log for plan in plans)
    explained = all(plan.dropped_reason for plan in plans if plan.dropped)
    rows = [{"plan": name, **_figures(plan, *columns)} for name, plan in report.plans.items()]
    return counted and explained, {"dropped": sum(plan.dropped for plan in plans), "plans": table(rows)}


@_check("train")
def loss_is_finite(report: TrainReport) -> Found:
    """The loss of the last steps is a number."""
    return report.loss is not None, {"loss": "not a finite number" if report.loss is None else report.loss}


@_check("evaluate", blocking=False)
def better_than_chance(report: Evaluation) -> Found:
    """The model's AUC on held-out targets is above 0.5."""
    return (report.auc or 0) > 0.5, _figures(report, "auc", "auc_streaming")


@_check("compare", blocking=False)
def above_the_floors(report: Comparison) -> Found:
    """Every paradigm's AUC is above the cost-free floors."""
    floor = max(value for value in report.baselines.values() if value is not None)
    rows = [{"paradigm": name, "auc": row.auc} for name, row in report.paradigms.items()]
    above = all((row.auc or 0) > floor for row in report.paradigms.values())
    return above, {"floor": floor, "paradigms": table(rows)}


@_check("compare", blocking=False)
def not_worse_than_sliding_window(report: Comparison) -> Found:
    """No paradigm may lose more AUC against the sliding window than `comparison.margin`, by its interval."""
    if not report.auc_delta:
        return True, {"note": "nothing to compare with"}
    margin, lows = report.protocol.margin, [delta.ci_low for delta in report.auc_delta.values()]
    known = [low for low in lows if low is not None]
    seen: dict[str, Any] = {"worst": min(known)} if known else {}
    rows = [{"paradigm": name, **asdict(delta)} for name, delta in report.auc_delta.items()]
    return len(known) == len(lows) and min(known) >= -margin, {**seen, "margin": margin, "differences": table(rows)}


@_check("compare", blocking=False)
def champion(report: Comparison) -> Found:
    """A model passed the gate (both of the above, by intervals): it gets the registry's alias `champion`."""
    rows = [{"paradigm": name, **asdict(decision)} for name, decision in report.gate.items()]
    return report.champion is not None, {"champion": report.champion or "none", "gate": table(rows)}


@_check("backtest", blocking=False)
def learns(report: BacktestReport) -> Found:
    """The mean AUC of tomorrow's targets is above 0.5."""
    seen = {name: value for name, value in _figures(report, "auc", "log_loss").items() if value is not None}
    return (report.auc or 0) > 0.5, {"days": len(report.days), **seen}


def specs(stage: Stage[Any], asset: dg.AssetKey | None = None) -> list[dg.AssetCheckSpec]:
    """The checks of a stage's asset; ``asset``: its key, where that is not the stage's noun."""
    return [
        dg.AssetCheckSpec(
            check.name, asset=asset or stage.asset, description=check.description, blocking=check.blocking
        )
        for check in CHECKS.get(stage.name, ())
    ]


def results(stage: Stage[Any], report: object) -> list[dg.AssetCheckResult]:
    """The results of a stage's checks of its report."""
    found = []
    for check in CHECKS.get(stage.name, ()):
        passed, seen = check.ask(report)
        severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
        found.append(dg.AssetCheckResult(passed=passed, check_name=check.name, severity=severity, metadata=seen))
    return found
