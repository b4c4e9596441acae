"""A training as the tracker hears it, without a model: for tests of what becomes of the record."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient

from dti_pipeline import artifacts, config, tracking
from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.training.progress import Evaluated, Finished, Started, Stepped

DIGEST = "0123456789abcdef0123456789abcdef"
TOTAL = 1000


def settings(home: Paths) -> Config:
    return config.load(home.params)


def started(seen: int = 0) -> Started:
    return Started(
        "dti", TOTAL, seen, parameters=42, device="cpu", world_size=1, dataset_digest=DIGEST, hardware="a CPU"
    )


def stepped(step: int, targets: int = 100) -> Stepped:
    return Stepped(
        step=step, targets_seen=step * targets, loss=1 / step, learning_rate=0.1, gradient_norm=1.0, seconds_left=0.0,
        targets_per_second=50.0, tokens_per_second=500.0, train_seconds=2.0 * step, peak_memory_gib=0.5,
    )  # fmt: skip


def publish_model(home: Paths, paradigm: str, run_id: str | None) -> None:
    with artifacts.publish(home.model(paradigm), "train") as draft:
        (draft.path / "model.safetensors").write_bytes(b"weights")
        draft.report["mlflow_run_id"] = run_id


def train(home: Paths, paradigm: str = "dti", steps: range = range(1, 11)) -> str:
    with tracking.training_run(settings(home), home, paradigm, {"dagster.run_id": "abc"}) as run:
        run.listen(started((steps.start - 1) * 100))
        for step in steps:
            run.listen(stepped(step))
        run.listen(Evaluated(TOTAL, 20.0, {"auc": 0.7, "log_loss": 0.5}))
        run.listen(Finished(TOTAL, 20.5))
        publish_model(home, paradigm, run.id)
    assert run.id is not None
    return run.id


def publish_comparison(home: Paths, runs: dict[str, str | None], **changed: Any) -> dict[str, Any]:
    """What `dti compare` leaves of these paradigms' runs."""
    comparison = {
        "dataset": "synthetic",
        "hardware": "cpu",
        "commit": None,
        "paradigms": {name: {"auc": 0.7, "mlflow_run_id": run} for name, run in runs.items()},
        "baselines": {"item_rate": 0.6},
        "protocol": {"events": DIGEST, "split": "test"},
        "verdict": {name: f"{name} is what it is." for name in runs},
        "speedup": {"dti": 5.0},
        "auc_delta": {"dti": {"mean": 0.01, "ci_low": 0.0, "ci_high": 0.02}},
        "champion": None,
    } | changed
    artifacts.write_json(home.comparison_file("json"), comparison)
    for suffix in ("md", "html"):
        artifacts.write_text(home.comparison_file(suffix), "table\n\n## Verdict\n\n...")
    home.comparison.mkdir(exist_ok=True)
    (home.comparison / "roc.png").write_bytes(b"png")
    return comparison


def store(home: Paths) -> MlflowClient:
    return MlflowClient(home.tracking_uri)
