"""A training as the tracker hears it, without a model: for tests of what becomes of the record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mlflow import MlflowClient

from dti_pipeline import artifacts, config, tracking
from dti_pipeline.config import Config
from dti_pipeline.evaluation.report import Comparison
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain
from dti_pipeline.training.progress import Evaluated, Finished, Started, Stepped
from tests import reports
from tests.reports import DIGEST

TOTAL = 1000


def settings(home: Paths) -> Config:
    return config.load(home.params)


def started(seen: int = 0, run_id: str | None = None, paradigm: str = "dti") -> Started:
    return Started(
        paradigm, TOTAL, seen, parameters=42, device="cpu", world_size=1, dataset_digest=DIGEST, hardware="a CPU",
        run_id=run_id,
    )  # fmt: skip


def stepped(step: int, targets: int = 100) -> Stepped:
    return Stepped(
        step=step, targets_seen=step * targets, loss=1 / step, learning_rate=0.1, gradient_norm=1.0, seconds_left=0.0,
        targets_per_second=50.0, tokens_per_second=500.0, train_seconds=2.0 * step, peak_memory_gib=0.5,
    )  # fmt: skip


def publish_model(home: Paths, paradigm: str, run_id: str | None) -> None:
    with artifacts.publish(home.model(paradigm), "train") as draft:
        (draft.path / "model.safetensors").write_bytes(b"weights")
        draft.report = replace(reports.TRAIN, paradigm=paradigm, mlflow_run_id=run_id)


def train(home: Paths, paradigm: str = "dti", steps: range = range(1, 11), known: str | None = None) -> str:
    """The id of the run; ``known``: the one that the resume state names."""
    with tracking.listener(settings(home), home, {"dagster.run_id": "abc"}) as listen:
        run_id = listen(started((steps.start - 1) * 100, known, paradigm))
        for step in steps:
            listen(stepped(step))
        listen(Evaluated(TOTAL, 20.0, {"auc": 0.7, "log_loss": 0.5}))
        publish_model(home, paradigm, run_id)
        listen(Finished(TOTAL, 20.5, replace(reports.TRAIN, paradigm=paradigm, mlflow_run_id=run_id)))
    assert run_id is not None
    return run_id


def publish_comparison(home: Paths, runs: dict[str, str | None], **changed: Any) -> Comparison:
    """What `dti compare` leaves of these paradigms' runs."""
    comparison = replace(
        reports.COMPARISON,
        paradigms={name: replace(reports.COMPARED, mlflow_run_id=run) for name, run in runs.items()},
        verdict={name: f"{name} is what it is." for name in runs},
        **{"champion": None, **changed},
    )
    artifacts.write_json(home.comparison_file("json"), to_plain(comparison))
    for suffix in ("md", "html"):
        artifacts.write_text(home.comparison_file(suffix), "table\n\n## Verdict\n\n...")
    home.comparison.mkdir(exist_ok=True)
    (home.comparison / "roc.png").write_bytes(b"png")
    return comparison


def store(home: Paths) -> MlflowClient:
    return MlflowClient(home.tracking_uri)
