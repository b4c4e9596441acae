"""A trained model's files: weights or adapters and head as safetensors, read back from a published folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dti_pipeline import artifacts
from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.errors import InputError
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.paradigms import named
from dti_pipeline.plain import from_plain

HEAD = "head.safetensors"


def save(model: CTRModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write weights (or adapters) and head. ``weights`` are those of :meth:`CTRModel.trained`, whole, where processes
    hold parts of them."""
    # peft would add the whole embedding matrix where it was resized; its new rows are among the adapters.
    adapters = {"save_embedding_layers": False} if hasattr(model.lm, "peft_config") else {}
    state: dict[str, Any] = {"state_dict": _under("lm.", weights)} if weights is not None else {}
    model.lm.save_pretrained(folder / "lm", **adapters, **state)
    if model.head is not None:
        head = model.head.state_dict() if weights is None else _under("head.", weights)
        save_file({k: v.detach().cpu().contiguous() for k, v in head.items()}, folder / HEAD)


def load(folder: Path, device: str | torch.device = "cpu") -> CTRModel:
    """A model that ``dti train`` published, ready to score. Raises InputError where the folder is not one."""
    manifest = artifacts.read(folder, "train")
    facts = manifest.report["network"]
    settings: ModelConfig = from_plain(ModelConfig, manifest.config["model"], "model")
    if settings.name_or_path is None or settings.lora.rank == 0:
        # All weights are in the folder: the shape comes from there, not from where training started.
        settings = replace(settings, name_or_path=str(folder / "lm"), lora=LoraConfig(rank=0))
    device = torch.device(device)
    # In the precision it was trained in, where that is one of the device's own.
    half = device.type == "cuda" and manifest.config.get("training", {}).get("dtype") == "bfloat16"
    dtype = torch.bfloat16 if half else torch.float32
    if not half:
        settings = replace(settings, frozen_weights="plain")
    facts = {**facts, "paradigm": named(facts["paradigm"])}
    model = CTRModel(settings, **facts, frozen_dtype=dtype)
    if settings.lora.rank and (folder / "lm" / "adapter_model.safetensors").is_file():
        model.lm.load_adapter(str(folder / "lm"), adapter_name="default")
    if model.head is not None:
        if not (folder / HEAD).is_file():
            raise InputError(f"{folder / HEAD} is missing: run `dti train` again")
        model.head.load_state_dict(load_file(folder / HEAD))
    model.place(model.make_plan(device, dtype))
    return model.eval()


def network_facts(
    model: CTRModel, vocabulary: int, row_length: int, special: dict[str, int], prefix: int
) -> dict[str, Any]:
    """What :func:`load` needs to build the same network again; it goes into the model's manifest."""
    return {
        "paradigm": model.paradigm.name,
        "context": model.context,
        "vocabulary": vocabulary,
        "row_length": row_length,
        "special": special,
        "prefix_length": prefix,
        "pooled": model.pooled,
    }


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
