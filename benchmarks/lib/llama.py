"""A Llama with random weights and a log of equal interactions, to measure a training step on.

Speed does not depend on the values of weights, so they are drawn on the device itself, in the precision that is
measured; LoRA, attention, masks, head, loss and optimizer are the project's own. A shape of another family is that
family's sizes in a Llama: without Qwen2.5's biases of queries, keys and values, and without Gemma 3's norms of queries
and keys, its two more norms a layer, its GELU and its window of 512 tokens, which prompts of n = 20 do not fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import record_function
from transformers import LlamaConfig, PretrainedConfig

from dti_pipeline.config import LoraConfig, ModelConfig, TrainingConfig
from dti_pipeline.modeling.attention.interface import Backend, BatchAttention
from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.batch_attention import BatchAttentionBuilder
from dti_pipeline.modeling.network.compilation import compile_parts
from dti_pipeline.modeling.network.ctr_model import CTRModel
from dti_pipeline.modeling.network.recomputation import recompute_layers
from dti_pipeline.packing.layout import Kind
from dti_pipeline.packing.reader import Rows
from dti_pipeline.packing.store import SPECIAL, TokenStore, uniform_store
from dti_pipeline.paradigms import DTI, Paradigm
from dti_pipeline.planning.shape import SHAPES, Shape
from dti_pipeline.training.loader import MicroBatches
from dti_pipeline.training.optimizer import optimizer_for
from dti_pipeline.training.runner import EagerRunner
from dti_pipeline.training.steps import Step

CONTEXT = 20  # interactions, n
LEARNING_RATE = 1e-4
QUERIES_AND_VALUES = ("q_proj", "v_proj")
#: Large enough to have every part of the real ones, small enough for a test.
TINY = Shape("tiny", 2, 64, 4, 2, 16, 96, 512, tied=False)
#: Row lengths are a multiple of a matrix product's tile and some tokens over: where 64 divides the number of rows, an
#: H200's cuBLAS chooses kernels that are some 4 % slower.
TILE, OVER = 128, 16


def shape_named(name: str, layers: int | None = None) -> Shape:
    """A shape of :data:`SHAPES` (or ``tiny``), with fewer layers where asked; its name then says so."""
    shape = TINY if name == TINY.name else SHAPES[name]
    if layers is None or layers == shape.layers:
        return shape
    return replace(shape, layers=layers, name=f"{name}, {layers} of {shape.layers} layers")


def row_shape(prompt: int, tokens: int) -> tuple[int, int]:
    """Prompts a row, and the row's length: ``tokens`` where equal prompts fill 98 % of it, so that variants share one
    compiled graph; else the length, at most a sixth longer, that pads least, so that none is slowed by geometry."""
    most = max(1, tokens // prompt)
    if 0.98 * tokens <= most * prompt <= tokens:
        return most, tokens
    counts = range(max(1, most // 2), max(1, tokens * 7 // 6 // prompt) + 1)
    lengths = {count: -((OVER - count * prompt) // TILE) * TILE + OVER for count in counts}
    count = min(lengths, key=lambda count: 1 - count * prompt / lengths[count])
    return count, lengths[count]


def log(users: int, interactions: int, tokens: int, vocabulary: int, seed: int = 7, texts: str = "zipf") -> TokenStore:
    """Histories of equal length, of the texts of 2,000 items, each of ``tokens - 1`` tokens, and a label.

    ``texts``: "zipf" repeats tokens as real texts do, and no more: a third is a template, the same in all, and words
    have Zipf's frequencies, rank^-1.2. Of a micro-batch at k = 50 then 14 % are distinct, where MovieLens-1M has 10 to
    12 %. "random" draws every token from the whole vocabulary, so that hardly any comes again, as in no text.
    """
    draw, items = np.random.default_rng(seed), 2000
    store = uniform_store(users, interactions, tokens)
    words = draw.integers(len(SPECIAL), vocabulary, (items, tokens - 1))
    if texts == "zipf":
        frequency = np.arange(1, vocabulary - len(SPECIAL) + 1) ** -1.2
        words = len(SPECIAL) + draw.choice(len(frequency), words.shape, p=frequency / frequency.sum())
        words[:, : (tokens - 1) // 3] = words[0, : (tokens - 1) // 3]
    return replace(
        store,
        tokens=words.astype(np.int32).flatten(),
        offsets=np.arange(items + 1, dtype=np.int64) * (tokens - 1),
        text=draw.integers(0, items, len(store.text)).astype(np.int32),
        label=draw.integers(0, 2, len(store.text)).astype(np.int8),
    )


def rows(store: TokenStore, context: int, k: int, prompts: int, row_length: int) -> Rows:
    """One prompt of ``k`` targets a history, ``prompts`` of them a row."""
    start = np.arange(0, len(store.text), context + k)
    return Rows(store, row_length, start, start + context, start + context + k, np.arange(len(start)) // prompts)


def plan(
    k: int, tokens: int, per_interaction: int, vocabulary: int, height: int = 1, dense: bool = False, **how: Any
) -> tuple[Rows, int]:
    """``height`` rows of about ``tokens`` tokens, of equal prompts of ``k`` targets; and the prompts a row.

    ``dense``: as many prompts, one a row, so that nothing is padded. ``how``: seed and texts of the :func:`log`.
    """
    prompt = CONTEXT * per_interaction + k * (per_interaction + 1)
    count, length = row_shape(prompt, tokens)
    store = log(height * count, CONTEXT + k, per_interaction, vocabulary, **how)
    return rows(store, CONTEXT, k, *((1, prompt) if dense else (count, length))), count


def work(plan: Rows, wanted: np.ndarray, device: torch.device) -> MicroBatches:
    """A step of one micro-batch, the wanted rows, as the loader hands it to the loop."""
    layout = plan.assemble(wanted)
    batch = Batch.of(layout, plan.store.label)
    step = Step(0, wanted, len(batch.target), 0)
    return MicroBatches(step, [batch.pin() if device.type == "cuda" else batch], int((layout.kind != Kind.PAD).sum()))


class Causal:
    """An attention backend: torch's fused causal kernels, for rows that hold one sliding-window prompt each.

    In such a row plain causal attention lets every [SUM] see the same tokens as its mask: only the label behind it sees
    more, and nothing reads that label. So the baseline may use the fastest causal kernel there is, without any mask.
    """

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scale: float, layer: Any) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)


class DenseBuilder(BatchAttentionBuilder):
    """Batches under :class:`Causal`."""

    def backend(self, *batch: Any) -> Backend:
        return Causal()


class Model(CTRModel):
    """The project's model, which can be switched from variant to variant: its 16 GB of weights are there once."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        dense = DenseBuilder(self.lm, self.settings, self.context, self.has_prefix, self.plan)
        self._builders = {False: self.attention, True: dense}

    def switch(self, paradigm: Paradigm, dense: bool, sum_position: str, forgetting: str) -> None:
        """Compute something else with the same weights; ``dense``: rows hold one sliding-window prompt each."""
        self.paradigm = paradigm
        self.settings = replace(self.settings, sum_position=sum_position, forgetting=forgetting)
        plan = self.make_plan(self.plan.device, self.plan.compute)
        self.attention = self._builders[dense]
        self.attention.settings, self.attention.plan = self.settings, plan
        self.attention._largest.clear()  # no variant computes what another needs

    def batch_attention(self, *batch: Any) -> BatchAttention:
        with record_function("mask"):
            return super().batch_attention(*batch)


def architecture(shape: Shape, positions: int, kind: type[PretrainedConfig] = LlamaConfig) -> PretrainedConfig:
    """transformers' configuration of a model of ``shape`` for rows of so many ``positions``."""
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        max_position_embeddings=positions,
        tie_word_embeddings=shape.tied,
    )


def untrained(
    shape: Shape,
    settings: ModelConfig,
    context: int,
    row_length: int,
    device: torch.device,
    compute: torch.dtype,
    paradigm: Paradigm = DTI,
    recomputed: bool = False,
) -> Model:
    """A :class:`Model` of ``shape``, not placed yet: frozen weights in ``compute``, those that are trained in fp32, as
    :func:`backbone.build` has them. ``recomputed``: under activation checkpointing."""
    config = architecture(shape, row_length)
    lm = backbone.random_weights(config, device, compute if settings.lora.rank else torch.float32)
    made = Model(settings, paradigm, context, shape.vocabulary, row_length, SPECIAL, frozen_dtype=compute, lm=lm)
    if recomputed:
        recompute_layers(made)
    return made


def model(
    shape: Shape,
    settings: ModelConfig,
    context: int,
    row_length: int,
    device: torch.device,
    compute: torch.dtype,
    **how: Any,
) -> Model:
    """The same, placed; compiled on a GPU."""
    made = untrained(shape, settings, context, row_length, device, compute, **how)
    made.place(made.make_plan(device, compute))
    if device.type == "cuda":
        compile_parts(made)
    return made


def adapted(shape: Shape, rank: int = 16, modules: Sequence[str] = QUERIES_AND_VALUES, **more: Any) -> ModelConfig:
    """The configuration of a pretrained model of ``shape`` under LoRA of ``rank`` on the linear layers ``modules``; all
    its weights are trained where the rank is 0."""
    lora = LoraConfig(rank=rank, alpha=32, target_modules=tuple(modules))
    return ModelConfig(name_or_path=shape.name, lora=lora, head="verbaliser" if rank else "fresh", **more)


def runner(model: Model, accelerator: Any) -> EagerRunner:
    """The steps of a training of ``model``."""
    training = TrainingConfig(learning_rate=LEARNING_RATE)
    return EagerRunner(model, optimizer_for(model, training), accelerator, training.max_gradient_norm)
