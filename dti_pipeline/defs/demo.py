"""``make demo``: the whole graph for two paradigms in this process, with the runs that a backfill of them has."""

from __future__ import annotations

import sys

import dagster as dg

from dti_pipeline.definitions import defs
from dti_pipeline.defs.automation import COMPARISON, PER_PARADIGM, SHARED
from dti_pipeline.paths import Paths

PARADIGMS = ("sliding_window", "dti")  # the baseline and the method, whatever else there is
LAST = [*COMPARISON, "item_states"]
RUNS = [(None, SHARED), *((paradigm, PER_PARADIGM) for paradigm in PARADIGMS), (None, LAST)]
NEXT = """
What to look at next (after `source .venv/bin/activate`):
  {comparison}   the comparison with its plots
  make ui        Dagster and MLflow in the browser: the graph, the runs, the training curves
  dvc repro      the same stages through DVC: nothing is left to do
  dti --help     every stage as a command; params.yaml holds what they read
"""


def main() -> int:
    """Materialise everything, print the table. Returns 1 at the first run that fails; its last line says why."""
    graph = defs.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.get() as instance:
        for paradigm, assets in RUNS:
            print(f"\nMaterialising {', '.join(assets)}{f' for {paradigm}' if paradigm else ''}")
            run = graph.execute_in_process(
                tags={"dagster/partition": paradigm} if paradigm else None,
                asset_selection=[dg.AssetKey(asset) for asset in assets],
                run_config={"loggers": {"console": {}}},
                instance=instance,
                raise_on_error=False,
            )
            if not run.success:
                return 1
    paths = Paths.from_env()
    sections = paths.comparison_file("md").read_text(encoding="utf-8").split("\n## ")
    print(f"\n{sections[0]}\n## {sections[1]}")  # table and verdict; the page has the rest
    print(NEXT.format(comparison=paths.comparison_file("html")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
