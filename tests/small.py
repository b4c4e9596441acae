"""A home whose stages take a second each, on one thread of a CPU."""

from __future__ import annotations

from typing import Any

from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.pipeline import plan
from dti_pipeline.plain import from_plain

#: params.yaml of a pipeline that takes seconds.
SMALL_PIPELINE: dict[str, Any] = {
    "synth": {"users": 24, "items": 40, "interactions_per_user": 16, "defects": 0},
    "split": {"min_history": 2},
    "validation": {"min_rows": 10, "min_users": 5, "min_targets": 1},
    "tokens": {"vocab_size": 320},
    "packing": {"context": 4, "targets": 5, "row_length": 128},
    "model": {"hidden_size": 16, "intermediate_size": 24, "heads": 2, "kv_heads": 1, "layers": 2},
    "training": {"device": "cpu", "epochs": 1, "targets_per_step": 32, "tokens_per_batch": 512, "evaluations": 1},
    "tracking": {"enabled": False},
}


def configured(**sections: dict[str, Any]) -> Config:
    """The small pipeline of one paradigm, with other keys in some sections."""
    content: dict[str, Any] = {**SMALL_PIPELINE, "paradigms": ["dti"]}
    return from_plain(Config, content | {name: content.get(name, {}) | keys for name, keys in sections.items()})


def make(paths: Paths) -> None:
    """Run every stage."""
    config = configured()
    for stage, paradigm in plan(config):
        stage.run(config, paths, paradigm)
