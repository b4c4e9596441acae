"""Saved views of MLflow's page: trainings by quality against time.

A view is a tag of the experiment, in the form that MLflow 3's own "Save as new view" writes; a version that does not
know it shows its usual table, which has no metric.
"""

from __future__ import annotations

import base64
import json
import os
import zlib

#: Links to MLflow point here, unless DTI_MLFLOW_URL says otherwise: the address of `mlflow ui`.
URL = "http://127.0.0.1:5000"
VIEW = "paradigms"
#: Columns of the views and their widths in pixels.
COLUMNS = {
    "metrics.`test/auc`": 110,
    "metrics.`time/train_seconds`": 150,
    "metrics.`comparison/speedup`": 160,
    "metrics.`comparison/auc_delta`": 170,
    "metrics.`perf/targets_per_second`": 190,
    "metrics.`test/auc_streaming`": 160,
    "metrics.`test/log_loss`": 120,
    "params.`training.seed`": 110,
    "attributes.`Models`": 200,
}
#: Those that the table has anyway, by MLflow's names.
LEADING = {"1": 73, "attributes.`Run Name`": 250, "runDateAndNestInfo": 145, "duration": 75}


def address(url: str, experiment: str | None = None) -> str:
    """The address of that view of an experiment, by its id, on an MLflow page at ``url``; without one, of the list."""
    if experiment is None:
        return f"{url}/#/experiments?workflowType=machine_learning"
    return f"{url}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def run_address(run_id: str) -> str:
    """The address of a run on the MLflow page."""
    return f"{os.environ.get('DTI_MLFLOW_URL') or URL}/#/runs/{run_id}"


def needs() -> str:
    """What the address of a run needs, for a reader of it: nothing where somebody has said where the page is."""
    return "" if os.environ.get("DTI_MLFLOW_URL") else " (needs `make ui` or `mlflow ui`)"


def experiment_tags() -> dict[str, str]:
    """Tags of a new experiment: a view of the trainings by AUC, and one of the comparisons, the newest first."""
    trainings = "tags.paradigm != ''"  # the comparisons that group them have none
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": _view(VIEW, trainings, "metrics.`test/auc`"),
        "mlflow.sharedViewState.comparisons": _view("comparisons", "", "attributes.start_time"),
    }


def _view(name: str, shown: str, order: str) -> str:
    state = {
        "searchFilter": shown,
        "orderByKey": order,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": [*LEADING, *COLUMNS],
        "columnWidths": {**LEADING, **COLUMNS},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {
            "xAxisKey": "metric",
            "selectedXAxisMetricKey": "time/train_seconds",
            "lineSmoothness": 0,
        },
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})
