"""Small logs with the same rows every day, homes with their tokens, and what a backtest over them left."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from dti_pipeline.backtest.report import BacktestReport
from dti_pipeline.config import Config, from_plain
from dti_pipeline.events.ingest import ingest
from dti_pipeline.packing.tokenize import tokenize
from dti_pipeline.paths import Paths
from dti_pipeline.plain import to_plain

DAY, HOUR = 86400, 3600
START = 1_577_836_800  # 2020-01-01
PARAMS: dict[str, Any] = {
    "paradigms": ["dti"],
    "events": {"source": "table", "path": "log.csv"},
    "split": {"min_history": 1, "feedback_delay": 5.0 * HOUR},
    "validation": {"required": False},
    "tokens": {"template": "title {item_id}"},
    "packing": {"context": 4, "targets": 6, "row_length": 128},
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 32, "dropout": 0.2},
    "training": {"targets_per_step": 16, "epochs": 1, "device": "cpu"},
    "backtest": {"paradigms": ["dti"], "staleness": [3], "late_days": 2, "first_day": "2020-01-02", "fresh": True},
    "tracking": {"enabled": False},
}


def lines(days: range, users: int = 8, each: int = 4) -> list[str]:
    """A log with so many rows of each user on each day."""
    draw = np.random.default_rng(5)
    made = []
    for day in range(days.stop):
        for user in range(users):
            times = START + day * DAY + np.sort(draw.choice(DAY // 60, each, replace=False)) * 60
            rows = [f"u{user},{draw.integers(20)},{draw.integers(1, 6)},{time}" for time in times]
            made += rows if day in days else []
    return made


def made(paths: Paths, rows: list[str], **sections: dict[str, Any]) -> Config:
    """The configuration of a home with the tokens of a log."""
    paths.home.mkdir(parents=True, exist_ok=True)
    (paths.home / "log.csv").write_text("\n".join(["user_id,item_id,rating,timestamp", *rows, ""]))
    raw = {name: values | sections.get(name, {}) if isinstance(values, dict) else values
           for name, values in PARAMS.items()}  # fmt: skip
    paths.params.write_text(json.dumps(raw))
    config = from_plain(Config, raw)
    ingest(config, paths)
    tokenize(config, paths)
    return config


def numbers(report: BacktestReport) -> Any:
    """The days without their clocks, and without the sentence about what was done."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(one) for key, one in value.items() if "seconds" not in key and key != "note"}
        return [timeless(one) for one in value] if isinstance(value, (list, tuple)) else value

    return timeless(to_plain(report))


def newest(paths: Paths) -> dict[str, torch.Tensor]:
    """Weights and moments of the last day that is kept."""
    files = paths.backtest_states("dti").rglob("state.safetensors")
    return load_file(max(files, key=lambda file: int(file.parent.parent.name.removeprefix("day-"))))
