"""Models of a few thousand weights, trained for a moment: what tests of serving ask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dti_pipeline import pipeline
from dti_pipeline.config import Config, from_plain
from dti_pipeline.paths import Paths

PARAMS: dict[str, Any] = {
    "synth": {"users": 40, "items": 60, "interactions_per_user": 25, "defects": 0},
    "validation": {"required": False},
    "tokens": {"max_text_tokens": 6},
    "packing": {"context": 6, "targets": 8, "row_length": 256},
    "model": {"hidden_size": 32, "heads": 2, "kv_heads": 2, "intermediate_size": 48},
    "training": {
        "epochs": 0.2,
        "evaluations": 0,
        "targets_per_step": 32,
        "tokens_per_batch": 1024,
        "warmup_share": 0.0,
    },
    "tracking": {"enabled": False},
}


def train(paths: Paths, paradigms: tuple[str, ...], **sections: dict[str, Any]) -> Config:
    """Train a model of each paradigm in a home, on the first call with a log of its own; ``sections`` over PARAMS."""
    plain = {name: PARAMS.get(name, {}) | sections.get(name, {}) for name in PARAMS.keys() | sections.keys()}
    config: Config = replace(from_plain(Config, plain), paradigms=paradigms)
    made = ("synth", "ingest") if paths.events.is_dir() else ()
    for stage, paradigm in pipeline.plan(config):
        if stage.name not in ("validate", "evaluate", "compare", *made):
            pipeline.execute(stage, config, paths, paradigm)
    return config


def questions(count: int, seed: int = 0, fewest: int = 1) -> list[dict[str, Any]]:
    """Requests of ``count`` users, each with ``fewest`` candidates to 5."""
    draw = np.random.default_rng(seed)

    def item() -> dict[str, Any]:
        return {"item_id": str(draw.integers(1, 60))}

    return [
        {
            "user_id": f"user {i}",
            "history": [item() | {"label": [0, 1, None][draw.integers(3)]} for _ in range(draw.integers(0, 12))],
            "candidates": [item() for _ in range(draw.integers(fewest, 6))],
        }
        for i in range(count)
    ]
