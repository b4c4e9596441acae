"""DVC's entry point: ``dvc.yaml``, rendered from the stage table.

``python -m dti_pipeline.dvc`` writes it into the working directory; ``--check`` says whether the one there is current.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from dti_pipeline.pipeline import STAGES, Stage

FILE = Path("dvc.yaml")
HEADER = """\
# Rendered from dti_pipeline/pipeline.py by `python -m dti_pipeline.dvc`; a test fails when it differs. Do not edit.
# `dvc repro` runs what changed, `dvc metrics show` and `dvc plots show` read the comparison.
"""
#: DVC would delete it before each run; ingestion reads the files that it parsed before.
KEPT = frozenset({"data/staged"})
#: A metrics file for each paradigm; plots of the comparison, and the pictures of `dti study`, which are committed.
SHOWN = """\
metrics:
- reports/comparison/metrics
plots:
- auc_against_training_time:
    title: Validation AUC against training time
    template: by_paradigm
    x: train_seconds
    y:
      reports/comparison/learning_curve.csv: val_auc
    x_label: training time (s)
    y_label: AUC
- roc:
    title: ROC of the test targets
    template: by_paradigm
    x: fpr
    y:
      reports/comparison/roc.csv: tpr
    x_label: false positive rate
    y_label: true positive rate
- calibration:
    title: Calibration
    template: by_paradigm
    x: predicted
    y:
      reports/comparison/calibration.csv: observed
    x_label: mean predicted probability
    y_label: observed click rate
- speedup:
    title: Training speed per target against sliding_window
    template: bar_horizontal
    x: speedup
    y:
      reports/comparison/speedup.csv: paradigm
- docs/img/study_auc_seconds.png
- docs/img/study_speedup_k.png
- docs/img/study_leak_k.png
- docs/img/study_auc_n.png
- docs/img/study_cost_history.png
"""


def render() -> str:
    """The text of dvc.yaml."""
    stages = {"stages": {stage.name: _entry(stage) for stage in STAGES}}
    text = yaml.safe_dump(stages, sort_keys=False, width=120).replace("{paradigm}", "${item.paradigm}")
    return f"{HEADER}{text}{SHOWN}"


def stage_name(stage: Stage[Any], paradigm: str | None) -> str:
    """DVC's name of a stage, or of its part for one paradigm."""
    return f"{stage.name}@{paradigm}" if stage.per_paradigm else stage.name


def _entry(stage: Stage[Any]) -> dict[str, Any]:
    # DVC takes the matrix from params.yaml: another list of paradigms needs no other dvc.yaml.
    entry: dict[str, Any] = {"matrix": {"paradigm": "${paradigms}"}} if stage.per_paradigm else {}
    command = f"dti {stage.name} --paradigm {{paradigm}}" if stage.per_paradigm else f"dti {stage.name}"
    entry |= {"desc": stage.summary, "cmd": command, "deps": list(stage.deps), "params": list(stage.params)}
    entry["outs"] = [{out: {"persist": True}} if out in KEPT else out for out in stage.outs]
    return {key: value for key, value in entry.items() if value}


def main(arguments: list[str]) -> int:
    """Write the file, or with ``--check`` return 1 where it differs."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m dti_pipeline.dvc [--check]", file=sys.stderr)
        return 2
    if not arguments:
        FILE.write_text(render(), encoding="utf-8")
    elif not FILE.is_file() or FILE.read_text(encoding="utf-8") != render():
        print(f"{FILE} is not what the stage table renders: run `python -m dti_pipeline.dvc`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
