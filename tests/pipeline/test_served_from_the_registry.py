"""What the registry holds is the model that was judged: in a fresh process, and through `dti score`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from dti_pipeline.cli import app
from dti_pipeline.evaluation import metrics
from tests.project import Project

pytestmark = pytest.mark.slow
ASK = """
import json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
asked = pandas.read_json(sys.argv[3], lines=True, dtype=False)
print(json.dumps([row[0] for row in model.predict(asked[["history", "candidates"]])]))
"""


@pytest.fixture(scope="module")
def asked(demonstrated: tuple[Project, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every judged target as a request, by the ids of its history and its own."""
    paths = demonstrated[0].paths
    log = pq.read_table(paths.events / "interactions.parquet").to_pydict()
    file = tmp_path_factory.mktemp("asked") / "requests.jsonl"
    with file.open("w") as out:
        for row in pq.read_table(paths.evaluation("dti") / "predictions.parquet")["row"].to_pylist():
            before = range(row - log["position"][row], row)
            history = [{"item_id": log["item_id"][r], "label": int(log["label"][r])} for r in before]
            out.write(json.dumps({"history": history, "candidates": [{"item_id": log["item_id"][row]}]}) + "\n")
    return file


def test_a_fresh_process_reproduces_the_evaluation(demonstrated: tuple[Project, str], asked: Path) -> None:
    project, _ = demonstrated
    printed = project.run(sys.executable, "-c", ASK, project.paths.tracking_uri, "models:/dti@dti", asked)
    answers = np.array(json.loads(next(line for line in printed.splitlines() if line.startswith("["))))
    judged = pq.read_table(project.paths.evaluation("dti") / "predictions.parquet")
    np.testing.assert_allclose(answers, judged["probability"].to_numpy(), rtol=0, atol=1e-6)
    report = json.loads((project.paths.evaluation("dti") / "metrics.json").read_text())
    assert metrics.auc(judged["label"].to_numpy(), answers) == pytest.approx(report["auc"], abs=1e-6)


def test_dti_score_takes_a_model_of_the_registry(
    demonstrated: tuple[Project, str], asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = demonstrated
    monkeypatch.setenv("DTI_HOME", str(project.home))
    out = tmp_path / "answers.jsonl"
    done = CliRunner().invoke(app, ["score", str(asked), "--model", "models:/dti@dti", "--out", str(out)])
    assert done.exit_code == 0, done.output
    answers = [json.loads(line)["probabilities"][0] for line in out.read_text().splitlines()]
    judged = pq.read_table(project.paths.evaluation("dti") / "predictions.parquet")
    np.testing.assert_allclose(answers, judged["probability"].to_numpy(), rtol=0, atol=1e-6)
