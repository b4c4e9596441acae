"""The one configuration: ``params.yaml`` read into frozen, typed sections, one for each stage.

Unknown keys, wrong types and values out of range are errors that name the key; an unknown key also gets the
nearest right one. Every field's comment is its documentation: unit, range and reason.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from dti_pipeline.errors import InputError
from dti_pipeline.plain import from_plain, nearest, to_plain


def _require(ok: bool, key: str, rule: str, value: object) -> None:
    if not ok:
        raise InputError(f"params key `{key}` must be {rule}, not {value!r}")


@dataclass(frozen=True)
class SynthConfig:
    """The demo's log: planted tastes, planted defects, a known best possible AUC."""

    seed: int = 7
    users: int = 400  # people in the log
    items: int = 600  # titles to rate
    interactions_per_user: int = 80  # mean; single users vary around it
    defects: int = 25  # bad rows planted in the log, every kind in turn

    def __post_init__(self) -> None:
        for name in ("users", "items", "interactions_per_user"):
            _require(getattr(self, name) >= 1, f"synth.{name}", "at least 1", getattr(self, name))
        _require(self.items <= 100_000, "synth.items", "at most 100000: there are no more titles", self.items)
        _require(self.defects >= 0, "synth.defects", "0 or more", self.defects)


@dataclass(frozen=True)
class ColumnsConfig:
    """Which column of a CSV, Parquet or JSONL table is what (``events.source: table``)."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    rating: str = "rating"
    # Unix seconds (or milli-, microseconds), or ISO 8601; None: no clock, only order.
    timestamp: str | None = "timestamp"
    item_text: str | None = None  # None: titles come from events.items_path, else the item id is the text


@dataclass(frozen=True)
class EventsConfig:
    """Where the log is and how it is read."""

    source: Literal["synthetic", "movielens", "movietweetings", "amazon", "table"] = "synthetic"
    path: str = "data/raw/synthetic"  # a file or a folder; relative paths start at the project's home
    items_path: str | None = None  # table, amazon: titles in a file of their own, when not found beside the log
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)  # table only
    item_columns: tuple[str, str] = ("item_id", "item_text")  # table only: id and text columns of items_path
    max_users: int | None = None  # keep whole histories of this many users, chosen by hash of their id; None: all
    # Ratings outside [min_rating, max_rating] are quarantined. None: the scale of the source (movielens 0.5 to 5,
    # movietweetings 0 to 10, amazon and synthetic 1 to 5, table open).
    min_rating: float | None = None
    max_rating: float | None = None
    memory_limit: str = "2GB"  # DuckDB's, as DuckDB writes it; beyond it, it spills to disk

    def __post_init__(self) -> None:
        _require(self.max_users is None or self.max_users >= 1, "events.max_users", "at least 1", self.max_users)
        _require(
            self.min_rating is None or self.max_rating is None or self.min_rating < self.max_rating,
            "events.min_rating",
            "below events.max_rating",
            self.min_rating,
        )


@dataclass(frozen=True)
class SplitConfig:
    """Which interactions are learnt from, which are judged, and what counts as a click."""

    # global_time: the earliest 80 % of eligible rows train, the next 10 % validate, the last 10 % test, one clock for
    # all users. user_order: the same shares inside each user's own history, for logs that have an order but no clock.
    rule: Literal["global_time", "user_order"] = "global_time"
    # 0: nothing is held out to choose by, and everything before the test rows is learnt from. That is the last fit of a
    # recipe that was chosen with validation rows; the floors it is held against are fitted on the same rows.
    validation_share: float = 0.1
    test_share: float = 0.1
    label_threshold: float = 3.0  # label = 1 where rating > threshold
    min_history: int = 5  # a target has at least this many earlier rows of its user; the others are context only

    def __post_init__(self) -> None:
        _require(0 <= self.validation_share < 0.5, "split.validation_share", "in [0, 0.5)", self.validation_share)
        _require(0 < self.test_share < 0.5, "split.test_share", "in (0, 0.5)", self.test_share)
        _require(self.min_history >= 0, "split.min_history", "0 or more", self.min_history)


@dataclass(frozen=True)
class ValidationConfig:
    """What a batch must satisfy before anything is spent on it."""

    required: bool = True  # tokenising refuses events that did not pass; False: go on at your own risk
    max_quarantined_share: float = 0.05  # of rows read
    max_untitled_share: float = 0.05  # of kept rows: items without a title of their own
    min_rows: int = 1000
    min_users: int = 20
    min_targets: int = 10  # in each split: below it no metric of that split means anything
    label_rate: tuple[float, float] = (0.02, 0.98)  # share of clicks must lie in this range
    max_label_rate_drift: float = 0.1  # absolute change of that share against the previous accepted batch
    min_volume_ratio: float = 0.5  # rows against the previous accepted batch
    max_shown_rows: int = 20  # failing rows shown for each failed expectation

    def __post_init__(self) -> None:
        for name in ("max_quarantined_share", "max_untitled_share", "max_label_rate_drift"):
            _require(0 <= getattr(self, name) <= 1, f"validation.{name}", "in [0, 1]", getattr(self, name))
        for name in ("min_rows", "min_users", "min_targets", "min_volume_ratio", "max_shown_rows"):
            _require(getattr(self, name) >= 0, f"validation.{name}", "0 or more", getattr(self, name))
        low, high = self.label_rate
        _require(0 <= low < high <= 1, "validation.label_rate", "two shares, the lower one first", self.label_rate)


@dataclass(frozen=True)
class TokensConfig:
    """Text to tokens, once."""

    tokenizer: str | None = None  # a transformers tokenizer by name or path; None: train one on the item texts
    vocab_size: int = 4096  # of a trained tokenizer, special tokens included
    template: str = "{item_text}"  # text of an interaction; {item_text} and {item_id} are filled in
    max_text_tokens: int = 32  # longer texts are cut at the end, and counted
    prefix: str = ""  # instruction that opens every prompt; empty: none

    def __post_init__(self) -> None:
        _require(self.max_text_tokens >= 1, "tokens.max_text_tokens", "at least 1", self.max_text_tokens)
        _require(self.vocab_size >= 64, "tokens.vocab_size", "at least 64", self.vocab_size)


@dataclass(frozen=True)
class PackingConfig:
    """Interactions to prompts to rows of constant length."""

    context: int = 20  # n: interactions before the first target
    targets: int | Literal["all"] = 50  # k: targets a streaming prompt; "all": as many as a row holds
    row_length: int = 1024  # tokens; the longest single-target prompt must fit
    seed: int = 7  # order of rows and of equal prompts
    max_targets: int | None = None  # keep this many training targets, whole users by hash; None: all of them

    def __post_init__(self) -> None:
        _require(self.context >= 0, "packing.context", "0 or more", self.context)
        _require(
            self.targets == "all" or (isinstance(self.targets, int) and self.targets >= 1),
            "packing.targets",
            "a whole number from 1, or `all`",
            self.targets,
        )
        _require(self.row_length >= 16, "packing.row_length", "at least 16", self.row_length)


@dataclass(frozen=True)
class LoraConfig:
    """Adapters on a pretrained model (peft)."""

    rank: int = 16  # 0: train every weight
    alpha: int = 32
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class ModelConfig:
    """The network: a Llama-style model from scratch, or any causal LM by name or path."""

    name_or_path: str | None = None  # None: from scratch, in the shape below
    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    intermediate_size: int = 128
    rope_theta: float = 10000.0
    tie_embeddings: bool = True
    # mimetic: queries and keys start as one map, so that a token attends to what resembles it from the first step on
    # (Trockman & Kolter, arXiv 2305.09828); standard: independent normal weights. From scratch only.
    initialisation: Literal["standard", "mimetic"] = "mimetic"
    initial_std: float = 0.1  # of the weights, from scratch: 0.02, right for wide models, starts narrow ones too flat
    # From scratch only. pooled: a [SUM] and a label enter the first layer with the mean embedding of their own item's
    # text added, so that a target can be matched with past items before any layer has learnt to gather texts. Without
    # it small models stay at the user's and the item's rate (31 trials on the demo's log, none above AUC 0.67; with it
    # 0.87 after three epochs). plain: tokens alone.
    summaries: Literal["plain", "pooled"] = "pooled"
    dropout: float = 0.0  # on embeddings, attention output and MLP output, from scratch only
    head: Literal["fresh", "verbaliser"] = "fresh"  # verbaliser: logit(yes) - logit(no) of the label tokens
    # What [SUM] queries know of distance. rope: rotated as any token at its place. rope_alibi: the same with an ALiBi
    # bias. nope_alibi: un-rotated query and keys, distance only through the ALiBi bias.
    sum_position: Literal["rope", "rope_alibi", "nope_alibi"] = "rope"
    forgetting: Literal["none", "linear", "quadratic", "square_root"] = "none"  # family of a(d)
    forgetting_max: float = 1.0  # a(d) at d = n
    lora: LoraConfig = field(default_factory=LoraConfig)
    # What adapters leave as it is. plain: in training.dtype. float8: products in eight bits, on a GPU that has them.
    frozen_weights: Literal["plain", "float8"] = "plain"

    def __post_init__(self) -> None:
        _require(
            self.frozen_weights == "plain" or (self.name_or_path is not None and self.lora.rank > 0),
            "model.frozen_weights",
            "plain where every weight is trained",
            self.frozen_weights,
        )
        _require(0 <= self.forgetting_max <= 1, "model.forgetting_max", "in [0, 1]", self.forgetting_max)
        _require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)
        _require(
            self.hidden_size % self.heads == 0,
            "model.hidden_size",
            f"a multiple of model.heads ({self.heads})",
            self.hidden_size,
        )
        _require(
            self.heads % self.kv_heads == 0, "model.kv_heads", f"a divisor of model.heads ({self.heads})", self.kv_heads
        )


@dataclass(frozen=True)
class TrainingConfig:
    """The loop. All counts are in targets, so that one recipe means the same for every paradigm."""

    seed: int = 7
    epochs: float = 2.0
    targets_per_step: int = 128  # about, over all processes: as many rows as hold so many on average
    tokens_per_batch: int = 8192  # a forward pass at most: whole rows; a step is as few passes as that allows
    learning_rate: float = 2e-3  # peak, of AdamW
    warmup_share: float = 0.05  # of all targets; then cosine to final_learning_rate_share
    final_learning_rate_share: float = 0.05
    weight_decay: float = 0.01
    # Of AdamW. Its steps have one size whatever the gradients' size, so that a rare word's noise moves it as far as a
    # frequent one's evidence; an epsilon as large as the rare words' gradients (1e-6 to 1e-4) makes theirs smaller.
    adam_epsilon: float = 1e-8
    max_gradient_norm: float = 1.0
    # Weights that are validated and published: their exponential moving average over steps, with this decay; 0: the
    # weights themselves. Averages forget the last steps' noise. Cost: one more copy of the trained weights.
    average_decay: float = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    # A small model in one process on a GPU: passes and updates are recorded and replayed (training/graphed.py).
    cuda_graph: bool = True
    evaluations: int = 4  # times the validation targets are scored during training
    evaluation_targets: int = 2000  # at most this many validation targets a time
    checkpoint_seconds: int = 300  # resume state at least this often; 0: after every step
    processes: int = 1  # more than one: started through torchrun, on one machine or several
    # none: each process holds the whole model (DDP). full: it holds its part of weights, gradients and moments, and
    # gathers a layer when it is computed (FSDP): for a model that does not fit one GPU; slower where it would.
    sharding: Literal["none", "full"] = "none"

    def __post_init__(self) -> None:
        _require(self.epochs > 0, "training.epochs", "above 0", self.epochs)
        _require(self.targets_per_step >= 1, "training.targets_per_step", "at least 1", self.targets_per_step)
        _require(self.learning_rate > 0, "training.learning_rate", "above 0", self.learning_rate)
        _require(self.adam_epsilon > 0, "training.adam_epsilon", "above 0", self.adam_epsilon)
        _require(0 <= self.average_decay < 1, "training.average_decay", "in [0, 1)", self.average_decay)
        _require(self.processes >= 1, "training.processes", "at least 1", self.processes)
        _require(
            self.sharding == "none" or self.processes > 1,
            "training.sharding",
            "none where training.processes is 1",
            self.sharding,
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """The judgement, the same for every paradigm."""

    split: Literal["validation", "test"] = "test"
    tokens_per_batch: int = 32768  # a forward pass; nothing is kept for gradients, so more than a training's
    bootstrap_samples: int = 1000  # draws of users behind every interval; fewer than a few hundred make it rough
    confidence: float = 0.95  # share of the draws inside an interval
    calibration_bins: int = 10  # of equal mass, for the calibration curve and ECE
    seed: int = 7  # of the draws

    def __post_init__(self) -> None:
        for name in ("bootstrap_samples", "calibration_bins"):
            _require(getattr(self, name) >= 1, f"evaluation.{name}", "at least 1", getattr(self, name))
        _require(0 < self.confidence < 1, "evaluation.confidence", "between 0 and 1", self.confidence)


@dataclass(frozen=True)
class ComparisonConfig:
    """What a model must show before it may serve."""

    margin: float = 0.01  # AUC: the interval of the difference to sliding_window must not reach below minus this

    def __post_init__(self) -> None:
        _require(0 <= self.margin < 1, "comparison.margin", "in [0, 1)", self.margin)


@dataclass(frozen=True)
class TrackingConfig:
    """Run records."""

    enabled: bool = True
    # MLflow's tracking URI; None: the environment's DTI_TRACKING_URI, else mlflow.db in the project's home. Not
    # MLFLOW_TRACKING_URI: MLflow sets that one itself while it works.
    uri: str | None = None
    experiment: str = "dti"  # also the name of the registered model whose versions its trainings are
    promote: bool = True  # a comparison gives the alias `champion` to the model that passed its gate; False: by hand


@dataclass(frozen=True)
class Config:
    """Every section of params.yaml; a section left out has its defaults."""

    paradigms: tuple[str, ...] = ("sliding_window", "dti")  # what `dti run` trains and compares
    synth: SynthConfig = field(default_factory=SynthConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    comparison: ComparisonConfig = field(default_factory=ComparisonConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        from dti_pipeline.paths import PARADIGMS

        _require(
            self.model.frozen_weights == "plain" or self.training.dtype == "bfloat16",
            "model.frozen_weights",
            "plain where training.dtype is not bfloat16",
            self.model.frozen_weights,
        )
        _require(
            self.model.frozen_weights == "plain" or self.training.sharding == "none",
            "model.frozen_weights",
            "plain where training.sharding is full",
            self.model.frozen_weights,
        )
        for paradigm in self.paradigms:
            check_paradigm(paradigm, PARADIGMS)

    def sections(self, *names: str) -> dict[str, Any]:
        """The named sections as plain values, as a manifest or a tracker records them."""
        return {name: to_plain(getattr(self, name)) for name in names}


def check_paradigm(paradigm: str, known: Sequence[str]) -> None:
    """Raise InputError for a name that is no paradigm."""
    if paradigm not in known:
        raise InputError(f"unknown paradigm {paradigm!r}: use one of {', '.join(known)}{nearest(paradigm, known)}")


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read params.yaml (all defaults where the file does not exist) and apply ``stage.key=value`` overrides.

    The environment says where runs are recorded (``DTI_TRACKING_URI``) where neither does.
    """
    raw: Any = {}
    if path.is_file():
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}" if mark else ""
            raise InputError(f"{path}{line} is not YAML: {getattr(error, 'problem', error)}") from error
        if not isinstance(raw, dict):
            raise InputError(f"{path} must hold a mapping of sections, not a {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    loaded = from_plain(Config, raw)
    uri = loaded.tracking.uri or os.environ.get("DTI_TRACKING_URI") or None
    return replace(loaded, tracking=replace(loaded.tracking, uri=uri))


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override!r} must read section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--set {override!r}: the value is not YAML") from error
    *parents, leaf = key.strip().split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise InputError(f"--set {override!r}: `{parent}` is a value, not a section")
        node = child
    node[leaf] = value
