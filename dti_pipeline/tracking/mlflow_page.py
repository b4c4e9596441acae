"""How MLflow's page shows the trainings: a saved view with what the method is about, quality against time.

MLflow opens a new experiment on its views of language-model traces, and on a table without a metric. Both are settings
of the experiment, kept as tags. The view's form is what MLflow 3's own "Save as new view" writes; a version that
does not know it shows its usual table.
"""

from __future__ import annotations

import base64
import json
import os
import zlib

#: Where links to MLflow point, unless DTI_MLFLOW_URL says otherwise: the address of `mlflow ui`.
URL = "http://127.0.0.1:5000"
VIEW = "paradigms"
COLUMNS = (
    "metrics.`test/auc`",
    "metrics.`test/auc_streaming`",
    "metrics.`test/log_loss`",
    "metrics.`time/train_seconds`",
    "metrics.`perf/targets_per_second`",
    "params.`packing.context`",
    "params.`packing.targets`",
    "params.`training.seed`",
)


def address(url: str, experiment: str) -> str:
    """Where an MLflow page at ``url`` shows that view of an experiment, by the experiment's id."""
    return f"{url}/#/experiments/{experiment}/runs?viewStateShareKey={VIEW}&workflowType=machine_learning"


def run_address(run_id: str) -> str:
    """Where the MLflow page shows a run."""
    return f"{os.environ.get('DTI_MLFLOW_URL') or URL}/#/runs/{run_id}"


def experiment_tags() -> dict[str, str]:
    """Tags of a new experiment."""
    state = {
        "searchFilter": "tags.paradigm != ''",  # trainings; the comparisons that group them have none
        "orderByKey": "metrics.`test/auc`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": VIEW, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
    return {
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": json.dumps(view),
    }
