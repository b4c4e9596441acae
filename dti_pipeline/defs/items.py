"""States of the champion's items as an asset, made after a comparison has chosen it.

Without ``from __future__ import annotations``: Dagster reads the annotations of an asset function as they stand.
"""

import dagster as dg

from dti_pipeline import tracking
from dti_pipeline.defs import processes
from dti_pipeline.defs.automation import after
from dti_pipeline.defs.resources import Project
from dti_pipeline.errors import InputError
from dti_pipeline.plain import to_plain


@dg.asset(
    deps=["comparison"],
    description="Keys and values of the champion's items, with which `dti serve` starts; none for a model whose items'"
    " states depend on histories.\n\nCommand line: `dti items`. Makes: `models/.items`.",
    group_name="dti",
    owners=["team:ctr"],
    kinds={"pytorch"},
    pool="gpu",
    automation_condition=after("comparison"),
)
def item_states(context: dg.AssetExecutionContext, project: Project) -> dg.MaterializeResult:
    processes.sign(context)
    work = project.open()
    from dti_pipeline.serving.item_store import make  # torch: not while definitions load

    try:
        folder = tracking.model_folder(work.config, work.paths, tracking.champion(work.config))
        report = make(folder, work.paths.item_states)
    except InputError as error:
        context.log.info(f"no item states are kept: {error}")
        return dg.MaterializeResult(metadata={"texts": 0, "why": str(error)})
    context.log.info(f"{report.texts:,} texts of {report.items:,} items, {report.mib:,.1f} MiB")
    return dg.MaterializeResult(metadata=to_plain(report))
