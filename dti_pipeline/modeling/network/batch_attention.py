"""What every layer is told of a batch: its mask in the backend's form, and its [SUM] rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dti_pipeline.config import ModelConfig
from dti_pipeline.modeling.attention.backends import (
    ROWS,
    Banded,
    Flex,
    ReorderedFlex,
    gqa_packing,
    kernel_options,
)
from dti_pipeline.modeling.attention.interface import Backend, BatchAttention
from dti_pipeline.modeling.attention.sums.banded import plain_rows
from dti_pipeline.modeling.attention.sums.blocked import blocked_sum_attention
from dti_pipeline.modeling.attention.sums.rows import Initial, Rule, Sizes, SumOperator, SumRows, needed, sum_rows
from dti_pipeline.modeling.masks.blocks import BlockMasks
from dti_pipeline.modeling.masks.reordered_blocks import ReorderedBlockMasks
from dti_pipeline.modeling.masks.visibility import Intervals, intervals
from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.execution import ExecutionPlan
from dti_pipeline.modeling.speed.compiler import not_compiled
from dti_pipeline.modeling.speed.distinct import Distinct
from dti_pipeline.paradigms import Paradigm


class BatchAttentionBuilder:
    """Makes the :class:`BatchAttention` of each batch of one model, as its plan says.

    On a GPU it keeps one block mask for each shape of a batch, and the largest sizes of [SUM] rows that were needed:
    new shapes and sizes are compilations.
    """

    def __init__(self, lm: Any, settings: ModelConfig, context: int, has_prefix: bool, plan: ExecutionPlan) -> None:
        self.settings, self.context, self.has_prefix, self.plan = settings, context, has_prefix, plan
        self.fused: Callable[..., Any] = not_compiled  # compiles what is around the layers, where that is planned
        self._lm = lm
        self._block_masks: dict[tuple[int, int], BlockMasks] = {}  # by shape of a batch
        self._largest: dict[tuple[object, ...], Sizes] = {}

    @property
    def sums_have_own_rule(self) -> bool:
        """Whether [SUM] rows obey another rule than the mask alone."""
        return self.settings.sum_position != "rope" or self.settings.forgetting != "none"

    def build(
        self,
        batch: Batch,
        embedded: Tensor,
        paradigm: Paradigm,
        trained_tokens: Tensor,
        slopes: Tensor,
        last_layer_at_sums: bool = False,
    ) -> BatchAttention:
        """Of one batch whose first layer is given ``embedded`` (B, L, E). Valid until the next call."""
        if embedded.device.type != self.plan.device.type:
            raise RuntimeError(f"the plan is for {self.plan.device}, and the batch is on {embedded.device}: place()")
        spans = self.fused(intervals)(batch.tokens, paradigm, self.context)
        sums = None
        if last_layer_at_sums or self.sums_have_own_rule or self.plan.reordered_keys:
            sums = self.sums(batch, spans, embedded, paradigm, trained_tokens, slopes)
        return BatchAttention(self.backend(batch, spans, sums, embedded), sums, last_layer_at_sums)

    def backend(self, batch: Batch, spans: Intervals, sums: SumRows | None, embedded: Tensor) -> Backend:
        """The one place that chooses an attention backend."""
        device = self.plan.device
        if device.type != "cuda":
            return Banded.of(spans)
        shape = (batch.token.shape[0], batch.token.shape[1])
        if shape not in self._block_masks:
            decoder = backbone.decoder_of(self._lm)
            kind = ReorderedBlockMasks if self.plan.reordered_keys else BlockMasks
            self._block_masks[shape] = kind(*shape, device, self.has_prefix, ROWS, gqa_packing(decoder.layers))
        masks = self._block_masks[shape]
        block_mask = masks.build(spans, self.fused)
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else embedded.dtype
        options = kernel_options(device, dtype, backbone.head_width(self._lm))
        if isinstance(masks, ReorderedBlockMasks):
            assert sums is not None
            return ReorderedFlex(block_mask, options, masks.keys, sums)
        return Flex(block_mask, options)

    def _operator(self) -> SumOperator:
        """The one place that chooses how [SUM] rows with a rule of their own are computed."""
        if not self.plan.sum_kernel:
            return blocked_sum_attention
        from dti_pipeline.modeling.attention.sums.fused import fused_sum_attention  # needs Triton

        return fused_sum_attention

    def sums(
        self,
        batch: Batch,
        spans: Intervals,
        embedded: Tensor,
        paradigm: Paradigm,
        trained_tokens: Tensor,
        slopes: Tensor,
    ) -> SumRows:
        """The [SUM] rows of one batch, and what their rule says of them."""
        settings = self.settings
        if self.plan.device.type == "cpu" and batch.host is None and not self.sums_have_own_rule:
            rule = Rule(spans, batch.position, batch.interaction, self.context, alibi=False, family="none", maximum=0.0)
            return plain_rows(batch.sum_slot, batch.sum_valid, rule, slopes)
        # On a CPU the batch's own sizes. On a GPU new sizes are compilations, and reading any from it is a wait: there
        # the copy in the CPU's memory is asked.
        sizes = self._needed(batch, spans) if batch.host is None else self.sizes(batch.host, paradigm)
        initial = None
        if settings.forgetting != "none":
            # A view: one tensor in two places would make the first layer, whose input it is too, other code to compile.
            state = embedded.view_as(embedded)
            initial = Initial.of(state, backbone.trained_rows(self._lm), batch.token, trained_tokens)
            if sizes.tokens:
                initial = replace(initial, distinct=Distinct.of(batch.token, embedded, sizes.tokens))
        rule = Rule(
            spans=spans,
            position=batch.position,
            interaction=batch.interaction,
            context=self.context,
            alibi=settings.sum_position != "rope",
            family=settings.forgetting,
            maximum=settings.forgetting_max,
        )
        return sum_rows(
            batch.sum_slot,
            batch.sum_valid,
            rule,
            slopes,
            sizes,
            self._operator(),
            keep_rotation=settings.sum_position != "nope_alibi",
            initial=initial,
        )

    def sizes(self, host: Batch, paradigm: Paradigm) -> Sizes:
        """What a batch in the CPU's memory needs on a GPU: no less than the batches of its shape before it."""
        here = self._needed(host, intervals(host.tokens, paradigm, self.context))
        kind = (paradigm.name, *host.token.shape)
        self._largest[kind] = here.rounded().at_least(self._largest.get(kind, here))
        return self._largest[kind]

    def _needed(self, batch: Batch, spans: Intervals) -> Sizes:
        sizes = needed(batch.sum_slot, batch.sum_valid, spans)
        return sizes._replace(tokens=len(batch.token.unique())) if self.plan.distinct_tokens else sizes
