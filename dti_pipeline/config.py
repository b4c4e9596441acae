"""The one configuration: ``params.yaml`` read into frozen, typed sections.

Each package declares its own section in its ``settings.py``: type and range of a key in its annotation, its meaning in
its comment; ``dti config --explain KEY`` prints them. All code imports sections from here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dti_pipeline.backtest.settings import BacktestConfig
from dti_pipeline.errors import InputError
from dti_pipeline.evaluation.settings import ComparisonConfig, EvaluationConfig
from dti_pipeline.events.settings import ColumnsConfig, EventsConfig, SplitConfig, SynthConfig
from dti_pipeline.execution.settings import ExecutionConfig
from dti_pipeline.modeling.settings import LoraConfig, ModelConfig
from dti_pipeline.packing.settings import PackingConfig, TokensConfig
from dti_pipeline.paradigms import named
from dti_pipeline.plain import from_plain, nearest, parse_yaml, require, to_plain
from dti_pipeline.serving.settings import ServingConfig
from dti_pipeline.tracking.settings import TrackingConfig
from dti_pipeline.training.settings import TrainingConfig
from dti_pipeline.validation.settings import ValidationConfig

__all__ = [
    "BacktestConfig", "ColumnsConfig", "ComparisonConfig", "Config", "EvaluationConfig", "EventsConfig",
    "ExecutionConfig", "LoraConfig", "ModelConfig", "PackingConfig", "ServingConfig", "SplitConfig", "SynthConfig",
    "TokensConfig", "TrackingConfig", "TrainingConfig", "ValidationConfig", "find", "from_plain", "load",
    "recipe", "to_plain",
]  # fmt: skip

#: This package's own folder: it holds recipes/.
PACKAGE = Path(__file__).resolve().parent


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
    backtest: BacktestConfig = field(default_factory=BacktestConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)

    def __post_init__(self) -> None:
        if self.model.frozen_weights != "plain":
            for fits, rule in (
                (self.training.dtype == "bfloat16", "plain where training.dtype is not bfloat16"),
                (self.training.sharding == "none", "plain where training.sharding is full"),
            ):
                require(fits, "model.frozen_weights", rule, self.model.frozen_weights)
        column = self.events.columns.split
        if self.split.rule == "column":
            require(column is not None, "events.columns.split", "a column's name where `split.rule` is column", column)
        else:
            rule = f"null where `split.rule` is {self.split.rule}, which would not read it"
            require(column is None, "events.columns.split", rule, column)
        for key, paradigms in (("paradigms", self.paradigms), ("backtest.paradigms", self.backtest.paradigms)):
            for paradigm in paradigms:
                named(paradigm)  # or it is refused
            require(len(set(paradigms)) == len(paradigms), key, "a list with each paradigm once", list(paradigms))

    def sections(self, *names: str) -> dict[str, Any]:
        """The named sections as plain values, as a manifest or a tracker records them."""
        return {name: to_plain(getattr(self, name), whole=False) for name in names}


def find(params: Path, home: Path) -> Path:
    """A parameter file by its path from the working directory, the home, or this package: ``recipes/x.yaml``."""
    for folder in (Path(), home, PACKAGE):
        if (folder / params).is_file():
            return folder / params
    recipes = [f"recipes/{name}.yaml" for name in _recipes()]
    raise InputError(f"--params {params} does not exist{nearest(str(params), recipes)}")


def recipe(name: str) -> dict[str, Any]:
    """The sections of one of the package's own recipes. Raises InputError that names the nearest one."""
    path = PACKAGE / "recipes" / f"{name}.yaml"
    if name not in _recipes():
        raise InputError(f"there is no recipe {name!r}{nearest(name, _recipes()) or ': ' + ', '.join(_recipes())}")
    sections: dict[str, Any] = parse_yaml(read_text(path), str(path))
    return sections


def _recipes() -> list[str]:
    return sorted(path.stem for path in (PACKAGE / "recipes").glob("*.yaml"))


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read params.yaml, all defaults where there is none, and apply ``section.key=value`` overrides.

    ``DTI_TRACKING_URI`` says where runs are recorded where neither does.
    """
    raw: Any = (parse_yaml(read_text(path), str(path)) or {}) if path.is_file() else {}
    if not isinstance(raw, dict):
        raise InputError(f"{path} must hold a mapping of sections, not a {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    loaded = from_plain(Config, raw)
    uri = loaded.tracking.uri or os.environ.get("DTI_TRACKING_URI") or None
    return replace(loaded, tracking=replace(loaded.tracking, uri=uri))


def read_text(path: Path) -> str:
    """Text of a file. Raises InputError, with the line, where it is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} line {line} is not UTF-8 text: save it as UTF-8") from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"--set {override!r} must read section.key=value")
    *parents, leaf = key.strip().split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"--set {override!r}: `{parent}` is a value, not a section")
    node[leaf] = parse_yaml(text, f"--set {override!r}:")
