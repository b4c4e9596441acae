"""What shapes a run's figures: the parameters that its digest is made of, and those that leave it as it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dti_pipeline.config import Config

#: Sections of params.yaml that shape a log's events, those that shape its tokens, and those of a run beside them.
LOG_SECTIONS = ("synth", "events", "split")
DATA_SECTIONS = (*LOG_SECTIONS, "tokens")
RUN_SECTIONS = ("packing", "model", "training", "evaluation")
#: Keys that say where and how work is done: they leave a run's figures, and its digest, as they are.
CIRCUMSTANCES = {
    "events": ("path", "items_path", "memory_limit"),
    "training": ("checkpoint_seconds", "device", "tokens_per_batch", "cuda_graph"),
    "evaluation": ("tokens_per_batch",),
}
#: Keys of ``training`` that a model which is not trained depends on.
UNTRAINED = {"epochs", "dtype", "seed"}
#: What digests take silence for where the default is another today: what it was when the first runs were made.
ONCE: dict[str, dict[str, Any]] = {"split": {"ties": "ordered"}}


def settings(config: Config, sections: tuple[str, ...]) -> dict[str, Any]:
    """The parameters of sections that differ from the defaults and from :data:`ONCE`, less :data:`CIRCUMSTANCES`.

    Defaults are left out so that a parameter added tomorrow does not make other runs of today's.
    """
    own, default = config.sections(*sections), merge(Config().sections(*sections), ONCE)
    return {
        section: {
            key: value
            for key, value in _differing(values, default[section]).items()
            if key not in CIRCUMSTANCES.get(section, ())
        }
        for section, values in own.items()
    }


def _differing(own: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """What differs, and of a mapping in it what differs there. A key that the defaults leave out is null there."""
    return {
        key: _differing(value, default[key]) if isinstance(value, Mapping) else value
        for key, value in own.items()
        if value != default.get(key)
    }


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with others on top, section by section."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def digest(content: Any) -> str:
    """12 hexadecimal characters of something that JSON can hold."""
    return hashlib.md5(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
