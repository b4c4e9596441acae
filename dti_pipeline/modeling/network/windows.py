"""A model's own windows: how far back its layers look, by its configuration, whatever our masks allow."""

from __future__ import annotations

from typing import Any

from dti_pipeline.errors import InputError


def own_window(settings: Any) -> int:
    """Positions that some layers look back at most, the query's own included; 0 where none is bounded."""
    return (getattr(settings, "sliding_window", None) or 0) if windowed_layers(settings) else 0


def windowed_layers(settings: Any) -> int:
    """How many layers have the window, if there is one."""
    kinds = getattr(settings, "layer_types", None)
    return settings.num_hidden_layers if kinds is None else list(kinds).count("sliding_attention")


def check_chunks(name: str, settings: Any, row_length: int) -> None:
    """Refuse layers that attend in chunks of tokens, which our masks are not met with, where a row holds several."""
    chunk: int = getattr(settings, "attention_chunk_size", None) or 0
    if "chunked_attention" in (getattr(settings, "layer_types", None) or ()) and chunk < row_length:
        raise InputError(
            f"{name} attends in chunks of {chunk} tokens, less than packing.row_length = {row_length}: lower it to"
            f" {chunk}"
        )
