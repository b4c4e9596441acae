"""DVC's entry point: the stages of ``dvc.yaml``, rendered from the stage table.

``python -m dti_pipeline.dvc`` writes it into the working directory; ``--check`` says whether the one there is current.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from dti_pipeline.pipeline import BACKTEST, STAGES, Stage

FILE = Path("dvc.yaml")
HEADER = """\
# The stages are rendered from dti_pipeline/pipeline.py by `python -m dti_pipeline.dvc`: do not edit them; a test fails
# when they differ. Metrics and plots are written here. `dvc repro` runs what changed, `dvc metrics show` and
# `dvc plots show` read the comparison.
"""
#: DVC would delete them before each run. A stage takes from them what it need not make again: files that were parsed,
#: loads of a log that grows.
KEPT = frozenset({"data/staged", "data/events", "data/checks", "data/tokens", "data/shards/{paradigm}"})


def render(text: str = "", header: str = HEADER, without: Collection[str] = ()) -> str:
    """The text of a dvc.yaml with the table's stages; what follows them, from ``metrics`` on, stays."""
    entries = {stage.name: _entry(stage) for stage in (*STAGES, BACKTEST) if stage.name not in without}
    stages = yaml.safe_dump({"stages": entries}, sort_keys=False, width=120)
    _, metrics, rest = text.partition("metrics:\n")
    return f"{header}{stages.replace('{paradigm}', '${item.paradigm}')}{metrics}{rest}"


def stage_name(stage: Stage[Any], paradigm: str | None) -> str:
    """DVC's name of a stage, or of its part for one paradigm."""
    return f"{stage.name}@{paradigm}" if stage.per_paradigm else stage.name


def _entry(stage: Stage[Any]) -> dict[str, Any]:
    # DVC takes the matrix from params.yaml: another list of paradigms needs no other dvc.yaml. An empty one is no stage
    # at all: a stage that had never run would fail every `dvc pull`, and a frozen one every `dvc repro`.
    entry: dict[str, Any] = {"matrix": {"paradigm": f"${{{stage.listed}}}"}} if stage.per_paradigm else {}
    command = f"dti {stage.name} --paradigm {{paradigm}}" if stage.per_paradigm else f"dti {stage.name}"
    entry |= {"desc": stage.summary, "cmd": command, "deps": list(stage.deps), "params": list(stage.params)}
    entry["outs"] = [{out: {"persist": True}} if out in KEPT else out for out in stage.outs]
    return {key: value for key, value in entry.items() if value}


def main(arguments: list[str]) -> int:
    """Write the file, or with ``--check`` return 1 where it differs."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m dti_pipeline.dvc [--check]", file=sys.stderr)
        return 2
    text = FILE.read_text(encoding="utf-8") if FILE.is_file() else ""
    if not arguments:
        FILE.write_text(render(text), encoding="utf-8")
    elif text != render(text):
        print(f"{FILE} is not what the stage table renders: run `python -m dti_pipeline.dvc`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
