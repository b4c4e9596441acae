"""Stages of the asset graph that cost nothing, in the place of the real ones."""

from __future__ import annotations

from typing import Any

import dagster as dg

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.definitions import defs
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import Stage

SUITES = {name: {"expectations": 2, "failed": 0} for name in ("raw", "canonical", "splits", "batch")}
PLAN = {"targets": 90, "targets_in_log": 90, "dropped": 0, "dropped_reason": None}
REPORTS: dict[str, dict[str, Any]] = {
    "synth": {"rows": 100},
    "ingest": {"read": 100, "kept": 90, "quarantined": 6, "duplicates": 4},
    "validate": {"success": True, "expectations": 8, "failed": 0, "suites": SUITES, "failures": []},
    "tokenize": {"interactions": 90, "tokens": 400, "tokens_per_interaction": 4.4, "texts": 40, "texts_cut": 0},
    "pack": {**PLAN, "rows": 7, "plans": {"train": PLAN, "test": PLAN}},
    "train": {"loss": 0.5, "train_seconds": 2.0, "mlflow_run_id": "a" * 32},
    "evaluate": {"auc": 0.75, "auc_streaming": 0.76, "training": {"mlflow_run_id": "a" * 32}},
    "compare": {
        "paradigms": {"dti": {"auc": 0.75, "mlflow_run_id": "a" * 32}},
        "baselines": {"item_rate": 0.7, "item_and_user_rate": None},
        "speedup": {"dti": 5.0},
        "auc_delta": {"dti": {"mean": 0.01, "ci_low": 0.0, "ci_high": 0.02}},
        "protocol": {"margin": 0.01},
        "gate": {"dti": {"passed": True, "reason": "is above every floor"}},
        "champion": "dti",
    },
}


class Stages:
    """Stand-ins for the stage functions: each publishes its report, or raises what it was told to."""

    def __init__(self) -> None:
        self.reports = {name: dict(report) for name, report in REPORTS.items()}
        self.errors: dict[str, Exception] = {}
        self.ran: list[tuple[str, str | None]] = []

    def run(self, stage: Stage, config: Config, paths: Paths, paradigm: str | None = None) -> dict[str, Any]:
        self.ran.append((stage.name, paradigm))
        report = self.reports[stage.name]
        with artifacts.publish(paths.resolve(stage.outs[0].format(paradigm=paradigm)), stage.name) as draft:
            draft.report |= report
        if stage.name in self.errors:
            raise self.errors[stage.name]
        return report


def launch(instance: dg.DagsterInstance, *assets: str, overrides: tuple[str, ...] = ()) -> dg.ExecuteInProcessResult:
    """Materialise assets (all of them where none is named) for `dti`."""
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        partition_key="dti",
        instance=instance,
        asset_selection=[dg.AssetKey(asset) for asset in assets] or None,
        run_config={"resources": {"project": {"config": {"overrides": list(overrides)}}}},
        raise_on_error=False,
    )
