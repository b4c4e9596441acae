"""The events of a training. It emits them while it runs; trackers, progress bars and orchestrators are listeners."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from dti_pipeline.training.report import TrainReport
from dti_pipeline.training.timeline import told


@dataclass(frozen=True)
class Started:
    """Once, before the first step (again after a resume, with ``targets_seen`` above 0)."""

    paradigm: str
    targets_total: int  # to be seen in all epochs together
    targets_seen: int
    parameters: int  # trainable
    device: str
    world_size: int
    dataset_digest: str  # of the shards, 32 characters
    hardware: str = ""  # that the seconds are measured on
    run_id: str | None = None  # of the tracker's run: of the resume state's until a tracker answers
    execution: tuple[str, ...] = ()  # how steps are to be computed, a line each
    threads: int | None = None  # that a CPU adds up in; a sum depends on them in its last digits


@dataclass(frozen=True)
class FellBack:
    """Before the first step: something faster could not be had, and the training goes on with something slower."""

    lost: str
    instead: str
    reason: str

    @property
    def line(self) -> str:
        return f"the training goes on with {self.instead} instead of {self.lost}: {self.reason}"


@dataclass(frozen=True)
class FirstStep:
    """After the first optimizer step that a process took: where the time since its start went."""

    targets_seen: int
    seconds: float
    parts: dict[str, float]  # seconds by name, in their order

    @property
    def line(self) -> str:
        return f"first step after {self.seconds:.1f} s: {told(self.parts)}"


@dataclass(frozen=True)
class Stepped:
    """After an optimizer step. Seconds exclude warm-up, evaluation and checkpoints."""

    step: int
    targets_seen: int
    loss: float  # mean over the step's targets, nats
    learning_rate: float
    gradient_norm: float
    targets_per_second: float
    tokens_per_second: float
    train_seconds: float
    seconds_left: float
    peak_memory_gib: float  # of the accelerator; of the process on a CPU


@dataclass(frozen=True)
class Evaluated:
    """After the validation targets were scored."""

    targets_seen: int
    train_seconds: float
    metrics: dict[str, float]  # auc, log_loss


@dataclass(frozen=True)
class Checkpointing:
    """Before a checkpoint is written: a training that continues from it does not emit earlier events again."""

    targets_seen: int


@dataclass(frozen=True)
class Finished:
    """Once, after the model was published."""

    targets_seen: int
    train_seconds: float
    report: TrainReport


Event = Started | FellBack | FirstStep | Stepped | Evaluated | Checkpointing | Finished
#: Hears every event. A tracker answers :class:`Started` with the id of the run that it records the training in, which
#: may be ``run_id`` or another; nobody answers anything else.
Listener = Callable[[Event], str | None]


def announce(event: Started, listeners: Iterable[Listener]) -> str | None:
    """Tell of the start, each listener with the run id that those before it answered; returns the last one."""
    for listener in listeners:
        event = replace(event, run_id=listener(event) or event.run_id)
    return event.run_id
