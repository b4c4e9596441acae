"""P(click) at every [SUM]: a causal LM under one paradigm's mask, and a two-way head on the [SUM] states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dti_pipeline.config import ModelConfig
from dti_pipeline.modeling.attention import layers
from dti_pipeline.modeling.attention.distance import alibi_slopes
from dti_pipeline.modeling.attention.interface import BatchAttention
from dti_pipeline.modeling.masks.visibility import LABEL, SUM, TEXT
from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.batch import Batch, Words
from dti_pipeline.modeling.network.batch_attention import BatchAttentionBuilder
from dti_pipeline.modeling.network.execution import ExecutionPlan, Traits
from dti_pipeline.modeling.speed import float8
from dti_pipeline.paradigms import Paradigm


class CTRModel(nn.Module):
    """The network and its head. ``forward`` maps a batch to one logit a target."""

    def __init__(
        self,
        settings: ModelConfig,
        paradigm: Paradigm,
        context: int,
        vocabulary: int,
        row_length: int,
        special: dict[str, int],
        prefix_length: int = 0,
        pooled: bool | None = None,
        frozen_dtype: torch.dtype = torch.float32,
        lm: PreTrainedModel | None = None,
    ) -> None:
        """Facts of the log and its tokenizer; ``frozen_dtype`` and ``lm`` as :func:`backbone.build` has them."""
        super().__init__()
        self.settings, self.paradigm, self.context = settings, paradigm, context
        # A pretrained model knows how to read a text; one from scratch is helped (ModelConfig.summaries).
        self.pooled = settings.name_or_path is None and settings.summaries == "pooled" if pooled is None else pooled
        self.has_prefix = prefix_length > 0
        trained_tokens = [special[role] for role in ("sum", "no", "yes")]
        self.lm = backbone.build(settings, vocabulary, row_length, trained_tokens, frozen_dtype, lm)
        shape: Any = backbone.decoder_of(self.lm).config.get_text_config()
        self.head = nn.Linear(shape.hidden_size, 2) if settings.head == "fresh" else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)  # starts at P = 1/2 for everyone: the first steps are calm
            nn.init.zeros_(self.head.bias)
        self.label_tokens: Tensor
        self.trained_tokens: Tensor
        self.slopes: Tensor
        self.register_buffer("label_tokens", torch.tensor([special["no"], special["yes"]]), persistent=False)
        self.register_buffer("trained_tokens", torch.tensor(trained_tokens), persistent=False)
        self.register_buffer("slopes", alibi_slopes(shape.num_attention_heads), persistent=False)
        plan = self.make_plan(torch.device("cpu"))
        self.attention = BatchAttentionBuilder(self.lm, settings, context, self.has_prefix, plan)

    def forward(self, batch: Batch, paradigm: Paradigm | None = None) -> Tensor:
        """(T,) logits of P(label = 1), fp32, in the order of ``batch.sum_index``; under another ``paradigm`` than the
        model's own where one is given."""
        embedded = self.fused(CTRModel.embed)(self, batch)
        attention = self.batch_attention(batch, embedded, paradigm, self.plan.last_layer_at_sums.on)
        hidden = self.states(embedded, batch.position, attention)
        index = batch.sum_index
        if attention.last_layer_at_sums:
            index = index // batch.token.shape[1] * hidden.shape[1] + batch.sum_within
        return self.fused(CTRModel._logits_at, dynamic=True)(self, hidden, index)

    def embed(self, batch: Words) -> Tensor:
        """(B, L, E): the first layer's input."""
        embedded = backbone.embed(self.lm, batch.token, self.trained_tokens)
        return embedded + pooled_texts(embedded, batch.kind) if self.pooled else embedded

    def batch_attention(
        self, batch: Batch, embedded: Tensor, paradigm: Paradigm | None = None, last_layer_at_sums: bool = False
    ) -> BatchAttention:
        """What the layers are told of the batch; valid until the next call."""
        paradigm = paradigm or self.paradigm
        return self.attention.build(batch, embedded, paradigm, self.trained_tokens, self.slopes, last_layer_at_sums)

    def states(self, embedded: Tensor, position: Tensor, attention: BatchAttention) -> Tensor:
        """(B, L, E), or (B, S, E) where the last layer works at [SUM] rows: what leaves the last layer and its norm."""
        decoder = backbone.decoder_of(self.lm)
        backbone.require_ours(decoder)
        return decoder(
            inputs_embeds=embedded, position_ids=position, attention_mask=None, use_cache=False, dti=attention
        ).last_hidden_state

    def _logits_at(self, hidden: Tensor, index: Tensor) -> Tensor:
        return self.logits(hidden.flatten(0, 1).index_select(0, index))

    def logits(self, at_sum: Tensor) -> Tensor:
        """(T, E) [SUM] states -> (T,) logits of P(label = 1), in fp32: yes less no. Two rows of the vocabulary, never
        all of it."""
        # Autocast would take both to bfloat16: a logit of 10 would be off by 1/32, and many targets would tie.
        with torch.autocast(at_sum.device.type, enabled=False):
            if self.head is not None:
                rows, bias = self.head.weight.float(), self.head.bias.float()
            else:
                rows = backbone.vocabulary_rows(self.lm, self.label_tokens, self.trained_tokens).float()
                bias = rows.new_zeros(2)
            # Not a product of matrices, which would be several kernels for one column.
            return (at_sum.float() * (rows[1] - rows[0])).sum(-1) + (bias[1] - bias[0])

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def width(self) -> int:
        """E, numbers of a token's state."""
        return int(backbone.decoder_of(self.lm).config.get_text_config().hidden_size)

    # How it is computed

    def foresee(self, batch: Batch) -> None:
        """Take note of what a batch in the CPU's memory needs, so that less than that is never compiled."""
        self.attention.foresee(batch, self.paradigm, self.plan.last_layer_at_sums.on)

    @property
    def plan(self) -> ExecutionPlan:
        return self.attention.plan

    @plan.setter
    def plan(self, plan: ExecutionPlan) -> None:
        self.attention.plan = plan

    @property
    def fused(self) -> Callable[..., Any]:
        """Compiles a function around the layers, where that is planned."""
        return self.attention.fused

    @fused.setter
    def fused(self, fused: Callable[..., Any]) -> None:
        self.attention.fused = fused

    @property
    def _adapted(self) -> bool:
        """Whether the language model has LoRA adapters."""
        return hasattr(self.lm, "peft_config")

    def make_plan(
        self, device: torch.device, compute: torch.dtype = torch.float32, **circumstances: Any
    ) -> ExecutionPlan:
        """How to compute this model on ``device``; see :meth:`ExecutionPlan.make`."""
        decoder: Any = backbone.decoder_of(self.lm)
        traits = Traits(
            width=self.width,
            head_width=backbone.head_width(self.lm),
            last_layer_at_sums=layers.supports_sum_rows(decoder.layers[-1]),
            projections_biased=backbone.has_biased_projections(self.lm),
            forgets=self.settings.forgetting != "none",
            embeds_tokens_alone=self.settings.name_or_path is not None and not self.pooled,
            merges_adapters=self._adapted and self.settings.frozen_weights == "plain",
        )
        return ExecutionPlan.make(traits, device, compute, **circumstances)

    def place(self, plan: ExecutionPlan) -> None:
        """Move to the plan's device and be computed by it; there, round frozen weights as ``model.frozen_weights``
        says."""
        self.to(plan.device)
        if self._adapted:
            from dti_pipeline.modeling.speed import merged  # peft takes seconds to import

            merged.merge(backbone.decoder_of(self.lm), plan.merged_adapters.on)
        if self.settings.frozen_weights == "float8":
            float8.freeze(backbone.decoder_of(self.lm).layers, plan.device)
        self.plan = plan


def pooled_texts(embedded: Tensor, kind: Tensor) -> Tensor:
    """(B, L, E): at each [SUM] and label, the mean embedding of its own interaction's text; 0 elsewhere."""
    kind, tokens = kind.reshape(-1), embedded.reshape(-1, embedded.shape[-1])
    is_text = kind == TEXT
    begins = is_text & ~torch.cat([is_text.new_zeros(1), is_text[:-1]])
    text = (begins.cumsum(0) - 1).clamp(min=0)  # the text a token belongs to, or stands behind
    weight = is_text.to(tokens.dtype)
    total = torch.zeros_like(tokens).index_add(0, text, tokens * weight[:, None])
    count = torch.zeros_like(weight).index_add(0, text, weight)
    behind = (kind == SUM) | (kind == LABEL)
    # Not by an index: its gradient would be sorted before it is added up.
    mean = (total / count.clamp(min=1)[:, None]).index_select(0, text)
    return (mean * behind[:, None]).view(embedded.shape)
