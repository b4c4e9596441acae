"""Stages of the asset graph that cost nothing, in the place of the real ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import dagster as dg

from dti_pipeline import artifacts
from dti_pipeline.config import Config
from dti_pipeline.definitions import defs
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import STAGES, Stage
from tests.reports import REPORTS


class Stages:
    """Stand-ins for the stage functions: each publishes its report, or raises what it was told to."""

    def __init__(self) -> None:
        self.reports: dict[str, Any] = dict(REPORTS)
        self.errors: dict[str, Exception] = {}
        self.ran: list[tuple[str, str | None]] = []

    def change(self, stage: str, **values: Any) -> None:
        """Let a stage's report say something else."""
        self.reports[stage] = replace(self.reports[stage], **values)

    def run(self, stage: Stage[Any], config: Config, paths: Paths, paradigm: str | None = None) -> Any:
        self.ran.append((stage.name, paradigm))
        report = self.reports[stage.name]
        with artifacts.publish(paths.resolve(stage.outs[0].format(paradigm=paradigm)), stage.name) as draft:
            draft.report = report
        if stage.name in self.errors:
            raise self.errors[stage.name]
        return report


def launch(instance: dg.DagsterInstance, *assets: str, overrides: tuple[str, ...] = ()) -> dg.ExecuteInProcessResult:
    """Materialise assets (those of all stages where none is named) for `dti`."""
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        tags={"dagster/partition": "dti"},
        instance=instance,
        asset_selection=[dg.AssetKey(asset) for asset in assets or (stage.asset for stage in STAGES)],
        run_config={"resources": {"project": {"config": {"overrides": list(overrides)}}}},
        raise_on_error=False,
    )
