"""Reports of evaluation and comparison. A figure that is not defined (an AUC over one class) is None, null in JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from dti_pipeline.paradigms import names
from dti_pipeline.training.report import TrainingSummary


@dataclass(frozen=True)
class Quality:
    """The chief metrics of one set of scores, see :mod:`dti_pipeline.evaluation.metrics`."""

    auc: float | None
    log_loss: float | None  # nats
    gauc: float | None
    ne: float | None  # normalised entropy
    f1: float | None
    accuracy: float | None
    ece: float | None


@dataclass(frozen=True, kw_only=True)
class Figures(Quality):
    """Every metric of one set of scores."""

    gauc_users: int  # users with both classes, whom gAUC counts
    gauc_users_skipped: int
    brier: float | None
    mean_prediction: float | None
    predicted_over_observed: float | None  # clicks
    uauc: float | None = None  # mean AUC of users with both classes, each counted the same; None: an older report
    auc_interval: tuple[float, float] | None = None  # of resampled users


@dataclass(frozen=True)
class Slice:
    """The targets in one bucket of a value."""

    bucket: str  # such as 10-19 or 200+
    count: int
    auc: float | None
    log_loss: float | None


@dataclass(frozen=True)
class Slices:
    """Targets by their user's earlier rows, and by the training targets of their item."""

    history_length: tuple[Slice, ...]
    item_popularity: tuple[Slice, ...]
    cold_items: tuple[Slice, ...] = ()  # items with fewer than 5 training targets, and all others


@dataclass(frozen=True)
class PromptShape:
    """The prompts of a training."""

    context: int  # interactions, n
    targets_per_prompt: int | Literal["all"]  # k


@dataclass(frozen=True)
class Forms:
    """A figure set for each form a target is scored in."""

    sliding_window: Figures  # one prompt a target, as a server sees it
    streaming: Figures  # many targets a prompt


@dataclass(frozen=True)
class Evaluation(Quality):
    """One paradigm's model on the held-out targets; the metrics at the top are those of one prompt a target."""

    paradigm: str
    split: str
    targets: int
    users: int
    users_in_training: int
    click_rate: float
    auc_streaming: float | None
    forms: Forms
    slices: Slices
    scoring: dict[str, float]  # seconds and targets/s of each form, threads of a CPU
    training: TrainingSummary
    prompts: PromptShape


@dataclass(frozen=True)
class Protocol:
    """The conditions of a comparison: targets, split, prompts and intervals."""

    source: str
    rule: str  # split.rule
    split: str
    targets: int
    users: int
    users_in_training: int
    click_rate: float
    context: int
    threshold: float  # of a predicted click
    bootstrap_samples: int
    confidence: float
    seed: int  # of the resamples
    margin: float  # comparison.margin
    events: str  # digest


@dataclass(frozen=True, kw_only=True)
class Compared(TrainingSummary, Figures):
    """One paradigm in a comparison."""

    auc_streaming: float | None
    prompts: PromptShape
    slices: Slices


@dataclass(frozen=True)
class Delta:
    """A paired difference of AUC with its interval."""

    mean: float | None
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Speed:
    """How many times less a target cost in training than the baseline's, see :mod:`dti_pipeline.evaluation.speed`."""

    clock: float  # in seconds
    processor: float | None  # in processor seconds; None: a GPU did the work
    tokens: float  # in tokens
    undisturbed: bool  # False: the machine had other work, and the clock proves nothing


@dataclass(frozen=True)
class SameTime:
    """The baseline after as much time as a paradigm's whole training takes, by the speed-up that can be claimed."""

    share: float  # of the baseline's own training
    baseline: float | None  # its validation AUC by then; None: it was not judged so early
    own: float  # the paradigm's validation AUC at its end


@dataclass(frozen=True)
class Decision:
    """Whether a paradigm passed the gate, and one clause that says why."""

    passed: bool
    reason: str


@dataclass(frozen=True)
class Comparison:
    """``reports/comparison.json``: the paradigms side by side; speed-ups and differences are against the baseline."""

    dataset: str
    delay: float | None  # split.feedback_delay: seconds after which a label is known; None: at once
    commit: str | None
    hardware: str
    protocol: Protocol
    paradigms: dict[str, Compared]
    baselines: dict[str, float | None]  # AUC of each floor
    floors: dict[str, Figures]
    best_possible_auc: float | None
    best_possible: Figures | None  # of the true probabilities; None: not known
    speedup: dict[str, float]  # times less training time a target, as far as it can be claimed
    speed: dict[str, Speed]  # what that rests on
    same_time: dict[str, SameTime]  # what the time saved buys, where some is
    auc_delta: dict[str, Delta]
    floor_delta: dict[str, dict[str, Delta]]  # paradigm -> floor
    streaming_delta: dict[str, Delta]  # streaming against one prompt a target
    gate: dict[str, Decision] = field(default_factory=dict)
    champion: str | None = None
    notes: tuple[str, ...] = ()
    verdict: dict[str, str] = field(default_factory=dict)

    def each(self) -> Iterator[tuple[str, Compared]]:
        """The paradigms in their own order, the baseline first; JSON files have them sorted."""
        return ((name, self.paradigms[name]) for name in names() if name in self.paradigms)
