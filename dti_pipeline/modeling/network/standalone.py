"""A trained model's language model as other programs read it: without our attention, with or without adapters."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.speed import merged


def has_adapters(model: CTRModel) -> bool:
    """Whether a model was trained by LoRA."""
    return hasattr(model.lm, "peft_config")


def save_merged(model: CTRModel, folder: Path, dtype: torch.dtype) -> None:
    """Write an ordinary checkpoint: adapters added to the weights, trained tokens among the vocabulary's rows. Uses the
    model up."""
    lm: Any = model.lm
    if has_adapters(model):
        merged.merge(backbone.decoder_of(lm), False)  # as peft has them
        lm = lm.merge_and_unload(safe_merge=True)
    _save(lm, folder, dtype)


def save_apart(model: CTRModel, base: Path, adapter: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint whose vocabulary has the trained tokens, and a peft folder of the LoRA matrices alone, which
    programs read that know no trained tokens. Uses the model up."""
    lm: Any = model.lm
    merged.merge(backbone.decoder_of(lm), False)
    config = copy(lm.peft_config["default"])
    config.trainable_token_indices, config.inference_mode = None, True
    config.base_model_name_or_path = f"../{base.name}"
    state = get_peft_model_state_dict(lm, save_embedding_layers=False)
    matrices = {name: value.detach().cpu().contiguous() for name, value in state.items() if ".lora_" in name}
    inputs, outputs = _trained(backbone.decoder_of(lm).get_input_embeddings()), _trained(lm.get_output_embeddings())
    lm = lm.unload()
    for matrix, rows in ((lm.get_input_embeddings(), inputs), (lm.get_output_embeddings(), outputs)):
        if rows is not None:
            with torch.no_grad():
                matrix.weight[rows[0]] = rows[1].to(matrix.weight.dtype)
    adapter.mkdir()
    config.save_pretrained(adapter)
    save_file(matrices, adapter / "adapter_model.safetensors", {"format": "pt"})
    _save(lm, base, dtype)


def _trained(embedding: Any) -> tuple[list[int], Tensor] | None:
    """Numbers and values of the rows that were trained beside adapters."""
    adapter = getattr(embedding, "token_adapter", None)
    if adapter is None:
        return None
    return list(adapter.token_indices["default"]), adapter.trainable_tokens_delta["default"].detach().clone()


def _save(lm: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    lm.config.get_text_config().use_cache = True  # which training had no use for
    lm.to(dtype).save_pretrained(folder)
