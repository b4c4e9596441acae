"""A training as an MLflow run: parameters, metrics by targets seen, the shards it read, the model it made."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from dti_pipeline import lineage
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import registry
from dti_pipeline.tracking.mlflow_store import connect, dataset, flatten
from dti_pipeline.tracking.system_metrics import SystemMetrics
from dti_pipeline.training.progress import Checkpointing, Evaluated, Event, Finished, Started, Stepped

log = logging.getLogger(__name__)

#: MLflow writes 0.2 ms a value and its charts draw some 300 points: a training logs at most this many, evenly
#: spaced in targets, so that the record costs about a second however long the training is.
POINTS = 1000
FLUSH_SECONDS = 1.0  # a transaction costs 5-10 ms whatever it holds
AWAY_SECONDS = 120.0  # until a store that did not answer is asked again: each time holds the training up
BATCH = 1000  # values MLflow takes in one call


@contextmanager
def training_run(config: Config, paths: Paths, paradigm: str, tags: Mapping[str, str]) -> Iterator[TrainingRun]:
    """A run that is FINISHED, FAILED (with the error as a tag) or KILLED when the block ends."""
    checkpoint = importlib.import_module("dti_pipeline.training.checkpoint")  # torch: here, where a training begins
    store, experiment = connect(config, paths)
    resume_state = checkpoint.folder(config, paths, paradigm)
    run = _resumed(store, checkpoint.run_id(resume_state)) or _created(store, experiment, config, paradigm, tags)
    checkpoint.begin(resume_state, run.id)
    try:
        yield run
    except BaseException as error:
        run.flush()
        with suppress(MlflowException):  # what ended the training is the news, not a store that is away
            store.set_tag(run.id, "error", f"{type(error).__name__}: {error}"[:5000])
            # A training that was interrupted says CheckFailed: it is to be continued.
            failed = isinstance(error, Exception) and not isinstance(error, CheckFailed)
            store.set_terminated(run.id, "FAILED" if failed else "KILLED")
            if failed:
                checkpoint.end(resume_state)
        raise
    run.flush()
    try:
        registry.register(store, config, paths.model(paradigm), store.get_run(run.id))
        store.set_terminated(run.id, "FINISHED")
    except MlflowException as error:  # hours of training are published: a store that is away does not undo them
        log.warning("run %s has no model yet, `dti evaluate` adds it: %s", run.id, error)
    checkpoint.end(resume_state)


class TrainingRun:
    """Takes a training's events; writes them in batches, about once a second."""

    def __init__(self, store: MlflowClient, run_id: str, logged: Mapping[str, int] | None = None) -> None:
        self.id = run_id
        self._store = store
        self._logged = dict(logged or {})  # metric -> targets seen at its last stored point
        self._pending: list[Metric] = []
        self._targets_total = 1
        self._point = -1
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        self._system = SystemMetrics()

    def listen(self, event: Event) -> None:
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, Evaluated):
            scores = {f"eval/{name}": value for name, value in event.metrics.items()}
            self._add(event.targets_seen, scores | self._time(event))
        elif isinstance(event, Finished):
            self._add(event.targets_seen, {"time/train_seconds": _milliseconds(event.train_seconds)})
        if isinstance(event, (Checkpointing, Finished)):  # a training that is resumed starts behind these points
            self.flush()
        if time.monotonic() >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Write what is pending. A store that does not answer stops nothing and loses nothing: the next one retries."""
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        try:
            while self._pending:
                self._store.log_batch(self.id, metrics=self._pending[:BATCH])
                del self._pending[:BATCH]
        except MlflowException as error:
            self._flush_at = time.monotonic() + AWAY_SECONDS
            log.warning("MLflow did not take %d values, they are kept for later: %s", len(self._pending), error)

    def _start(self, event: Started) -> None:
        self._targets_total = max(1, event.targets_total)
        self._point = event.targets_seen * POINTS // self._targets_total
        facts = {
            "device": event.device,
            "hardware": event.hardware,
            "world_size": event.world_size,
            "trainable_parameters": event.parameters,
            "data.digest": event.dataset_digest,
        }
        self._store.log_batch(self.id, tags=[RunTag(name, str(value)) for name, value in facts.items()])
        self._store.log_inputs(self.id, [dataset(f"shards/{event.paradigm}", event.dataset_digest, "training")])

    def _step(self, event: Stepped) -> None:
        point = event.targets_seen * POINTS // self._targets_total
        if point == self._point:
            return
        self._point = point
        values = {
            "train/loss": event.loss,
            "train/learning_rate": event.learning_rate,
            "train/gradient_norm": event.gradient_norm,
            "perf/targets_per_second": round(event.targets_per_second, 1),
            "perf/tokens_per_second": round(event.tokens_per_second, 1),
            "mem/peak_gib": event.peak_memory_gib,
        }
        self._add(event.targets_seen, values | self._time(event) | self._system.read())

    def _time(self, event: Stepped | Evaluated) -> dict[str, float]:
        """Seconds of training at this point; the end has its own event, with the whole time."""
        if event.targets_seen >= self._targets_total:
            return {}
        return {"time/train_seconds": _milliseconds(event.train_seconds)}

    def _add(self, targets_seen: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        for name, value in values.items():
            # A training resumed from an older checkpoint walks again over points that are stored already.
            if targets_seen > self._logged.get(name, -1):
                self._pending.append(Metric(name, value, now, targets_seen))
                self._logged[name] = targets_seen


def _milliseconds(seconds: float) -> float:
    """MLflow's table shows every digit that it was given."""
    return round(seconds, 3)


def _resumed(store: MlflowClient, run_id: str | None) -> TrainingRun | None:
    if run_id is None:
        return None
    try:
        stored = store.get_run(run_id)
    except MlflowException:
        log.warning("run %s, named by the checkpoint, is not in this MLflow store: a new run is made", run_id)
        return None
    store.update_run(run_id, status="RUNNING")
    logged = {name: max(p.step for p in store.get_metric_history(run_id, name)) for name in stored.data.metrics}
    return TrainingRun(store, run_id, logged)


def _created(
    store: MlflowClient, experiment: str, config: Config, paradigm: str, tags: Mapping[str, str]
) -> TrainingRun:
    code = lineage.commit()
    source = {
        "mlflow.user": os.environ.get("USER", ""),
        "mlflow.source.name": "dti train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": code.sha if code else "",
        "mlflow.source.git.dirty": str(code.dirty).lower() if code else "",
        "paradigm": paradigm,
        **{f"version.{library}": version for library, version in lineage.versions().items()},
    }
    described = {name: value for name, value in {**source, **tags}.items() if value}
    name = f"{paradigm} n={config.packing.context} k={_targets(config, paradigm)} seed={config.training.seed}"
    run_id = store.create_run(experiment, run_name=name, tags=described).info.run_id
    params = {"paradigm": paradigm, **flatten(config.sections(*SECTIONS))}
    store.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    return TrainingRun(store, run_id)


#: What shapes a model and its judgement.
SECTIONS = ("synth", "events", "split", "validation", "tokens", "packing", "model", "training", "evaluation")


def _targets(config: Config, paradigm: str) -> int | str:
    return 1 if paradigm == "sliding_window" else config.packing.targets
