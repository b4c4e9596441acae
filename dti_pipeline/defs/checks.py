"""What each asset's report must satisfy. Judged with the materialisation, from the report alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from dti_pipeline.defs.metadata import table
from dti_pipeline.pipeline import Stage

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """A named question about a stage's report. A blocking one stops what comes after in the same run."""

    name: str
    description: str
    ask: Callable[[Report], tuple[bool, dict[str, Any]]]  # passed, and what was seen
    blocking: bool = True


def _not_empty(report: Report) -> tuple[bool, dict[str, Any]]:
    seen = {name: report[name] for name in ("rows", "files", "bytes") if name in report}
    return bool(seen) and all(seen.values()), seen


def _texts_have_tokens(report: Report) -> tuple[bool, dict[str, Any]]:
    # An interaction has a token for its label and, unless its text became nothing, some for its text.
    seen = {name: report[name] for name in ("interactions", "tokens", "tokens_per_interaction", "texts", "texts_cut")}
    return seen["interactions"] > 0 and seen["tokens_per_interaction"] > 1, seen


def _ledger(report: Report) -> tuple[bool, dict[str, Any]]:
    seen = {name: report[name] for name in ("read", "kept", "quarantined", "duplicates")}
    return seen["read"] == seen["kept"] + seen["quarantined"] + seen["duplicates"], seen


def _suite(suite: str) -> Callable[[Report], tuple[bool, dict[str, Any]]]:
    def ask(report: Report) -> tuple[bool, dict[str, Any]]:
        if suite not in report["suites"]:
            return True, {"expectations": 0, "note": "not asked of this batch"}
        failures = [failure for failure in report["failures"] if failure["suite"] == suite]
        seen: dict[str, Any] = dict(report["suites"][suite])
        columns = ("name", "column", "expected", "observed", "unexpected_count")
        if failures:
            seen["failures"] = table([{column: failure[column] for column in columns} for failure in failures])
        for failure in failures:
            if failure["failing_rows"]:
                seen[f"rows: {failure['name']}"] = table(failure["failing_rows"])
        return not failures, seen

    return ask


def _no_target_lost(report: Report) -> tuple[bool, dict[str, Any]]:
    columns = ("targets", "targets_in_log", "dropped", "dropped_reason")
    rows = [{"plan": name, **{column: plan[column] for column in columns}} for name, plan in report["plans"].items()]
    kept = all(
        row["targets"] + row["dropped"] == row["targets_in_log"] and (row["dropped"] == 0 or row["dropped_reason"])
        for row in rows
    )
    return kept, {"dropped": sum(row["dropped"] for row in rows), "plans": table(rows)}


def _loss_is_finite(report: Report) -> tuple[bool, dict[str, Any]]:
    return math.isfinite(report["loss"]), {"loss": report["loss"]}


def _better_than_chance(report: Report) -> tuple[bool, dict[str, Any]]:
    return (report["auc"] or 0) > 0.5, {"auc": report["auc"], "auc_streaming": report["auc_streaming"]}


def _above_the_floors(report: Report) -> tuple[bool, dict[str, Any]]:
    floor = max(value for value in report["baselines"].values() if value is not None)
    rows = [{"paradigm": name, "auc": row["auc"]} for name, row in report["paradigms"].items()]
    return all((row["auc"] or 0) > floor for row in rows), {"floor": floor, "paradigms": table(rows)}


def _not_worse(report: Report) -> tuple[bool, dict[str, Any]]:
    margin = report["protocol"]["margin"]
    rows = [{"paradigm": name, **delta} for name, delta in report["auc_delta"].items()]
    within = all(row["ci_low"] is not None and row["ci_low"] >= -margin for row in rows)
    worst = min((row["ci_low"] for row in rows if row["ci_low"] is not None), default=None)
    seen: dict[str, Any] = (
        {"margin": margin, "differences": table(rows)} if rows else {"note": "nothing to compare with"}
    )
    return within, seen if worst is None else {"worst": worst, **seen}


def _champion(report: Report) -> tuple[bool, dict[str, Any]]:
    rows = [{"paradigm": name, **asked} for name, asked in report["gate"].items()]
    return report["champion"] is not None, {"champion": report["champion"] or "none", "gate": table(rows)}


CHECKS: dict[str, tuple[Check, ...]] = {
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


def specs(stage: Stage) -> list[dg.AssetCheckSpec]:
    """The checks of a stage's asset."""
    return [
        dg.AssetCheckSpec(check.name, asset=stage.asset, description=check.description, blocking=check.blocking)
        for check in CHECKS.get(stage.name, ())
    ]


def judge(stage: Stage, report: Report) -> list[dg.AssetCheckResult]:
    """Ask a stage's checks of its report; one that does not block warns."""
    results = []
    for check in CHECKS.get(stage.name, ()):
        passed, seen = check.ask(report)
        severity = dg.AssetCheckSeverity.ERROR if check.blocking else dg.AssetCheckSeverity.WARN
        results.append(dg.AssetCheckResult(passed=passed, check_name=check.name, severity=severity, metadata=seen))
    return results


def refuses(result: dg.AssetCheckResult) -> bool:
    """Whether a result stops what comes after."""
    return not result.passed and result.severity == dg.AssetCheckSeverity.ERROR
