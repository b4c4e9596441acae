"""``make demo``: the whole asset graph for two paradigms, as the buttons of ``dg dev`` would run it."""

from __future__ import annotations

import sys
from typing import Any

import dagster as dg

from dti_pipeline.defs.jobs import materialise
from dti_pipeline.paths import Paths

PARADIGMS = ("sliding_window", "dti")  # the baseline and the method, whatever else there is
NEXT = """
What to look at next (after `source .venv/bin/activate`):
  {comparison}   the comparison with its plots
  make ui        Dagster and MLflow in the browser: the graph, the runs, the training curves
  dvc repro      the same stages through DVC: nothing is left to do
  dti --help     every stage as a command; params.yaml holds what they read
"""


def main() -> int:
    """Materialise everything, print the table. Returns 1 where an asset failed; its line says why."""
    with dg.DagsterInstance.get() as instance:
        to_terminal: dict[str, Any] = {"loggers": {"console": {}}}
        if materialise(instance, PARADIGMS, to_terminal, lambda line: print(f"\n{line}")) is not None:
            return 1
    paths = Paths.from_env()
    sections = paths.comparison_file("md").read_text(encoding="utf-8").split("\n## ")
    print(f"\n{sections[0]}\n## {sections[1]}")  # table and verdict; the page has the rest
    print(NEXT.format(comparison=paths.comparison_file("html")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
