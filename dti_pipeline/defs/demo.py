"""``make demo``: the whole asset graph for two paradigms, as the buttons of ``dg dev`` would run it."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import dagster as dg

from dti_pipeline.definitions import defs
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import STAGES

BASELINE, METHOD = "sliding_window", "dti"
NEXT = """
What to look at next (after `source .venv/bin/activate`):
  {comparison}   the comparison with its plots
  make ui        Dagster and MLflow in the browser: the graph, the runs, the training curves
  dvc repro      the same stages through DVC: nothing is left to do
  dti --help     every stage as a command; params.yaml holds what they read
"""


def main() -> int:
    """Materialise everything, print the table. Returns 1 where an asset failed; its line says why."""
    job = defs.resolve_implicit_global_asset_job_def()
    shared = [stage.asset for stage in STAGES if stage.name != "compare"]
    rest = [stage.asset for stage in STAGES if stage.per_paradigm or stage.name == "compare"]
    with ExitStack() as stack:
        instance = stack.enter_context(dg.DagsterInstance.get())
        for paradigm, assets in ((BASELINE, shared), (METHOD, rest)):
            print(f"\nMaterialising {', '.join(assets)} for {paradigm}")
            done = job.execute_in_process(
                partition_key=paradigm,
                asset_selection=[dg.AssetKey(asset) for asset in assets],
                run_config={"loggers": {"console": {}}},
                instance=instance,
                raise_on_error=False,
            )
            if not done.success:
                return 1
    paths = Paths.from_env()
    sections = paths.comparison_file("md").read_text(encoding="utf-8").split("\n## ")
    print(f"\n{sections[0]}\n## {sections[1]}")  # table and verdict; the page has the rest
    print(NEXT.format(comparison=paths.comparison_file("html")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
