"""Pretrained models and tokenizers as parameters name them: a Hugging Face name, a folder, or a GGUF file's path."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dti_pipeline.errors import InputError


def is_gguf(name: str) -> bool:
    return Path(name).suffix.lower() == ".gguf"


def source(name: str, key: str) -> dict[str, Any]:
    """What transformers' ``from_pretrained`` is told of ``name``, the value of parameter ``key``. Raises InputError for
    a GGUF file that is not there, or that cannot be read for want of a package."""
    if not is_gguf(name):
        return {"pretrained_model_name_or_path": name}
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"params key `{key}`: there is no file {name}")
    if find_spec("gguf") is None:
        raise InputError(f"params key `{key}` is a GGUF file, which takes a package: pip install 'dti-pipeline[gguf]'")
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def dequantised(source: dict[str, Any]) -> dict[str, Any]:
    """What a model's ``from_pretrained`` is told besides: a GGUF file becomes a plain model, to train and to save."""
    if "gguf_file" not in source:
        return {}
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}


def on_disk(name: str | None) -> Path | None:
    """The folder or file of that name; None for a name of Hugging Face."""
    path = Path(name).expanduser() if name else None
    return path if path is not None and path.exists() else None


def remark(name: str | None) -> str | None:
    """What has to be known of the weights of that name, in a line."""
    if name is None or not is_gguf(name):
        return None
    return f"weights: dequantised from {Path(name).name}; not quite those that were trained"
