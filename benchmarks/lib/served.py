"""A scorer of a model of any shape with random weights, its own words and items, without files: speed does not depend
on the values of weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.lib import llama
from dti_pipeline.artifacts import Manifest
from dti_pipeline.config import LoraConfig, ModelConfig
from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.packing.report import Knowledge
from dti_pipeline.packing.store import SPECIAL
from dti_pipeline.paradigms import named
from dti_pipeline.planning.shape import Shape
from dti_pipeline.serving.scorer import Scorer
from dti_pipeline.serving.texts import Texts
from dti_pipeline.training import report

#: Words of a title, a token each; with its label an interaction has one more.
TITLE = 11
ITEMS, WORDS = 4000, 400
ROW_LENGTH = 1024


def scorer(shape: Shape, paradigm: str, device: torch.device, tokens_per_batch: int) -> Scorer:
    """In bfloat16 under LoRA on a GPU, in fp32 on a CPU; items 0 to ITEMS."""
    half = device.type == "cuda"
    dtype = torch.bfloat16 if half else torch.float32
    torch.manual_seed(7)
    lm = backbone.random_weights(llama.architecture(shape, ROW_LENGTH), device, dtype)
    settings = ModelConfig(name_or_path=shape.name, lora=LoraConfig(rank=16), head="verbaliser")
    facts = {"context": llama.CONTEXT, "vocabulary": shape.vocabulary, "row_length": ROW_LENGTH, "special": SPECIAL}
    model = CTRModel(settings, named(paradigm), **facts, frozen_dtype=dtype, lm=lm).eval()  # type: ignore[arg-type]
    model.place(model.make_plan(device, dtype))
    words = {word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(WORDS))])}
    made = Tokenizer(models.WordLevel(words, unk_token="pad"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    draw = np.random.default_rng(5)
    titles = {str(i): " ".join(f"w{w}" for w in draw.integers(WORDS, size=TITLE)) for i in range(ITEMS)}
    texts = report.Texts("{item_text}", 64, (), Knowledge())
    told = cast(Any, SimpleNamespace(texts=texts, network=facts))
    return Scorer(
        manifest=Manifest(Path(shape.name), "train", told, {}, {}, {}),
        model=model,
        tokenizer=tokenizer,
        titles=titles,
        device=device,
        tokens_per_batch=tokens_per_batch,
        autocast=torch.bfloat16 if half else None,
        knowledge=texts.knowledge,
        user_template=None,
        user_columns=(),
        names=("item_text",),
        columns={},
        texts=Texts(tokenizer, 64),
    )


def requests(candidates: int, count: int, longest: int = 70) -> list[dict[str, Any]]:
    """Requests over histories of n to ``longest`` interactions."""
    draw = np.random.default_rng(3)

    def items(many: int) -> list[dict[str, Any]]:
        return [{"item_id": str(item)} for item in draw.integers(ITEMS, size=many)]

    made = []
    for _ in range(count):
        history = items(int(draw.integers(llama.CONTEXT, longest)))
        labels = draw.integers(2, size=len(history)).tolist()
        events = [item | {"label": label} for item, label in zip(history, labels, strict=True)]
        made.append({"history": events, "candidates": items(candidates)})
    return made
