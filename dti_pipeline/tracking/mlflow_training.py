"""A training as an MLflow run: parameters, metrics by targets seen, the shards it read, the model it made."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress

from mlflow.entities import LifecycleStage, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from dti_pipeline import lineage
from dti_pipeline.config import Config
from dti_pipeline.errors import CheckFailed
from dti_pipeline.paradigms import named
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import mlflow_record, registry
from dti_pipeline.tracking.mlflow_store import author, connect, dataset, end_killed, flatten, readable
from dti_pipeline.tracking.system_metrics import SystemMetrics
from dti_pipeline.training.progress import Checkpointing, Evaluated, Event, Finished, FirstStep, Started, Stepped

log = logging.getLogger(__name__)

POINTS = 1000  # of a training's curves at most, evenly spaced in targets: MLflow writes about 0.2 ms a value
FLUSH_SECONDS = 1.0  # a transaction costs 5-10 ms whatever it holds
AWAY_SECONDS = 120.0  # until a store that did not answer is asked again: each time holds the training up
COMMAND = "dti train"  # tag of its runs
BATCH = 1000  # values MLflow takes in one call
#: Sections that shape a model and its evaluation.
SECTIONS = ("synth", "events", "split", "validation", "tokens", "packing", "model", "training", "evaluation")


class TrainingRecord:
    """Takes a training's events; connects at once, and writes them in batches, about once a second."""

    def __init__(self, config: Config, paths: Paths, tags: Mapping[str, str]) -> None:
        self.id: str | None = None  # None: nothing has started, or the record is closed
        self._store, self._experiment = connect(config, paths)
        self._config, self._paths, self._tags = config, paths, tags
        self._logged: dict[str, int] = {}  # metric -> targets seen at its last stored point
        self._pending: list[Metric] = []
        self._targets_total = 1
        self._point = -1
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        self._system = SystemMetrics()

    def __call__(self, event: Event) -> str | None:
        if isinstance(event, Started):
            return self._start(event)
        if isinstance(event, Stepped):
            self._step(event)
        elif isinstance(event, FirstStep):
            parts = {name.replace(" ", "_"): seconds for name, seconds in event.parts.items()}
            values = {f"start/{name}_seconds": round(value, 3) for name, value in parts.items()}
            self._add(event.targets_seen, {"start/seconds": round(event.seconds, 3)} | values)
        elif isinstance(event, Evaluated):
            scores = {f"eval/{name}": value for name, value in event.metrics.items()}
            self._add(event.targets_seen, scores | self._time(event))
        elif isinstance(event, Finished):
            seconds = {"train_seconds": event.train_seconds, "processor_seconds": event.report.processor_seconds}
            self._add(event.targets_seen, {f"time/{name}": round(value, 3) for name, value in seconds.items()})
            self._close(event.report.paradigm)
        if isinstance(event, Checkpointing) or time.monotonic() >= self._flush_at:
            self.flush()  # a training that is resumed starts behind the points that are stored
        return None

    def fail(self, error: BaseException) -> None:
        """End the record with the error as a tag. An interrupted training says CheckFailed: it is to be continued."""
        if self.id is None:
            return
        self.flush()
        with suppress(MlflowException):  # what ended the training is the news, not a store that is away
            self._store.set_tag(self.id, "error", f"{type(error).__name__}: {error}"[:5000])
            failed = isinstance(error, Exception) and not isinstance(error, CheckFailed)
            self._store.set_terminated(self.id, "FAILED" if failed else "KILLED")

    def _close(self, paradigm: str) -> None:
        """Write the rest, register the published model and end the record."""
        self.flush()
        try:
            registry.register(self._store, self._config, self._paths.model(paradigm), self._store.get_run(self.id))
            self._store.set_terminated(self.id, "FINISHED")
        except MlflowException as error:  # the model is published, whether the store is there or not
            log.warning("run %s has no model yet, `dti evaluate` adds it: %s", self.id, error)
        self.id = None

    def flush(self) -> None:
        """Write what is pending; values that the store does not take are kept for the next time."""
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        try:
            while self.id is not None and self._pending:
                self._store.log_batch(self.id, metrics=self._pending[:BATCH])
                del self._pending[:BATCH]
        except MlflowException as error:
            self._flush_at = time.monotonic() + AWAY_SECONDS
            log.warning("MLflow did not take %d values, they are kept for later: %s", len(self._pending), error)

    def _start(self, event: Started) -> str:
        by = {"paradigm": event.paradigm, **author(COMMAND, self._paths)}
        self.id = event.run_id and self._resume(event.run_id)
        end_killed(self._store, self._experiment, self._config, by, but=self.id)
        if self.id is None:
            self.id = self._create(event.paradigm)
            self._store.log_dict(self.id, mlflow_record.record(self._config, self._paths, event), mlflow_record.FILE)
        self._targets_total = max(1, event.targets_total)
        self._point = event.targets_seen * POINTS // self._targets_total
        facts = {name: getattr(event, name) for name in ("device", "hardware", "world_size")}
        facts |= {"trainable_parameters": event.parameters, "data.digest": event.dataset_digest}
        self._store.log_batch(self.id, tags=[RunTag(name, str(value)) for name, value in facts.items()])
        self._store.log_inputs(self.id, [dataset(f"shards/{event.paradigm}", event.dataset_digest, "training")])
        return self.id

    def _step(self, event: Stepped) -> None:
        point = event.targets_seen * POINTS // self._targets_total
        if point == self._point:
            return
        self._point = point
        values = {
            "train/loss": event.loss,
            "train/learning_rate": event.learning_rate,
            "train/gradient_norm": event.gradient_norm,
            "perf/targets_per_second": event.targets_per_second,
            "perf/tokens_per_second": event.tokens_per_second,
            "mem/peak_gib": event.peak_memory_gib,
        }
        self._add(event.targets_seen, values | self._time(event) | self._system.read())

    def _time(self, event: Stepped | Evaluated) -> dict[str, float]:
        """Seconds of training at this point; the end has its own event, with the whole time."""
        if event.targets_seen >= self._targets_total:
            return {}
        return {"time/train_seconds": event.train_seconds}

    def _add(self, targets_seen: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        for name, value in values.items():
            # A training resumed from an older checkpoint walks again over points that are stored already.
            if targets_seen > self._logged.get(name, -1):
                self._pending.append(Metric(name, readable(value), now, targets_seen))
                self._logged[name] = targets_seen

    def _resume(self, run_id: str) -> str | None:
        """Open a run again; None where the store does not have it, or no longer."""
        try:
            stored = self._store.get_run(run_id)
        except MlflowException:
            log.warning("run %s, named by the checkpoint, is not in this MLflow store: a new run is made", run_id)
            return None
        if stored.info.lifecycle_stage != LifecycleStage.ACTIVE:
            log.warning("run %s, named by the checkpoint, was deleted in this MLflow store: a new run is made", run_id)
            return None
        self._store.update_run(run_id, status="RUNNING")
        self._logged = {
            name: max(p.step for p in self._store.get_metric_history(run_id, name)) for name in stored.data.metrics
        }
        return run_id

    def _create(self, paradigm: str) -> str:
        config, code = self._config, lineage.commit()
        source = {
            **author(COMMAND, self._paths),
            "mlflow.source.git.commit": code.sha if code else "",
            "mlflow.source.git.dirty": str(code.dirty).lower() if code else "",
            "paradigm": paradigm,
            **{f"version.{library}": version for library, version in lineage.versions().items()},
        }
        described = {name: value for name, value in {**source, **self._tags}.items() if value}
        k = config.packing.targets if named(paradigm).streams else 1
        name = f"{paradigm} n={config.packing.context} k={k} seed={config.training.seed}"
        run_id: str = self._store.create_run(self._experiment, run_name=name, tags=described).info.run_id
        params = {"paradigm": paradigm, **flatten(config.sections(*SECTIONS))}
        self._store.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        return run_id
