"""What every layer is told of a batch: its mask in the backend's form, and its [SUM] rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from dti_pipeline.config import ModelConfig
from dti_pipeline.modeling.attention.backends import Banded, Fused
from dti_pipeline.modeling.attention.interface import Backend, BatchAttention
from dti_pipeline.modeling.attention.sums.banded import plain_rows
from dti_pipeline.modeling.attention.sums.blocked import blocked_sum_attention
from dti_pipeline.modeling.attention.sums.rows import Initial, Rule, Sizes, SumOperator, SumRows, needed, sum_rows
from dti_pipeline.modeling.masks.visibility import Intervals, intervals
from dti_pipeline.modeling.network import backbone
from dti_pipeline.modeling.network.batch import Batch
from dti_pipeline.modeling.network.execution import ExecutionPlan
from dti_pipeline.modeling.network.windows import own_window
from dti_pipeline.modeling.speed.compiler import not_compiled
from dti_pipeline.modeling.speed.distinct import Distinct
from dti_pipeline.paradigms import Paradigm


class BatchAttentionBuilder:
    """Makes the :class:`BatchAttention` of each batch of one model, as its plan says.

    On a GPU it keeps the largest sizes of [SUM] rows that were needed, and that labels were late: what is new is a
    compilation.
    """

    def __init__(self, lm: Any, settings: ModelConfig, context: int, has_prefix: bool, plan: ExecutionPlan) -> None:
        self.settings, self.context, self.has_prefix, self.plan = settings, context, has_prefix, plan
        self.fused: Callable[..., Any] = not_compiled  # compiles what is around the layers, where that is planned
        self.window = own_window(backbone.decoder_of(lm).config.get_text_config())
        self._lm = lm
        self._largest: dict[tuple[object, ...], Sizes] = {}
        self._late = False

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
        """Of one batch whose first layer is given ``embedded`` (B, L, E)."""
        if embedded.device.type != self.plan.device.type:
            raise RuntimeError(f"the plan is for {self.plan.device}, and the batch is on {embedded.device}: place()")
        spans = self.fused(intervals)(batch.tokens, paradigm, self.context)
        window, length = self.window, batch.token.shape[1]
        near = self.fused(Intervals.within)(spans, batch.position, window) if 0 < window < length else None
        sums = of_near = None
        if self.sums_have_own_rule or (last_layer_at_sums and self.plan.attention_kernel):
            sums = self.sums(batch, spans, embedded, paradigm, trained_tokens, slopes)
            of_near = None if near is None else self._near(sums, batch, near)
        elif last_layer_at_sums:  # in bands, as all others
            sums, of_near = (
                None if x is None else plain_rows(batch.sum_slot, batch.sum_valid, self._rule(batch, x), slopes)
                for x in (spans, near)
            )
        late = self.plan.attention_kernel.on and self.late(batch)
        attention = BatchAttention(self.backend(spans, late), sums, last_layer_at_sums)
        if near is None:
            return attention
        return replace(attention, windowed=BatchAttention(self.backend(near, True), of_near), window=window)

    def _near(self, sums: SumRows, batch: Batch, near: Intervals) -> SumRows:
        """The same [SUM] rows in layers with a window, over the intervals ``near``. They need no larger sizes. Not by
        kernels, which want what [SUM]s see to ascend along a row: that of a request's rows does not."""
        sizes = Sizes(sums.slot.shape[1], *sums.query.shape[2:], *sums.part.shape[2:])
        return sum_rows(
            batch.sum_slot,
            batch.sum_valid,
            self._rule(batch, near),
            sums.slopes,
            sizes,
            blocked_sum_attention,
            keep_rotation=sums.keep_rotation,
            initial=sums.initial,
        )

    def backend(self, spans: Intervals, late: bool) -> Backend:
        """The one place that chooses an attention backend; not ``late``, where ``spans`` are not."""
        if self.plan.attention_kernel:
            return self.fused(Fused.of)(spans, self.has_prefix, late)
        return Banded.of(spans)

    def late(self, batch: Batch) -> bool:
        """Whether the kernels ask which labels a query knows: from the first batch on that has late ones."""
        self._late = self._late or batch.late
        return self._late

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
        return sum_rows(
            batch.sum_slot,
            batch.sum_valid,
            self._rule(batch, spans),
            slopes,
            sizes,
            self._operator(),
            keep_rotation=settings.sum_position != "nope_alibi",
            initial=initial,
        )

    def _rule(self, batch: Batch, spans: Intervals) -> Rule:
        return Rule(
            spans=spans,
            position=batch.position,
            interaction=batch.interaction,
            seen=batch.seen,
            context=self.context,
            alibi=self.settings.sum_position != "rope",
            family=self.settings.forgetting,
            maximum=self.settings.forgetting_max,
        )

    def sizes(self, host: Batch, paradigm: Paradigm) -> Sizes:
        """What a batch in the CPU's memory needs on a GPU: no less than the batches of its shape before it."""
        here = self._needed(host, intervals(host.tokens, paradigm, self.context))
        kind = (paradigm.name, *host.token.shape)
        self._largest[kind] = here.rounded().at_least(self._largest.get(kind, here))
        return self._largest[kind]

    def foresee(self, host: Batch, paradigm: Paradigm, last_layer_at_sums: bool) -> None:
        """Take note of what a batch in the CPU's memory needs, before anything is compiled for less."""
        self.late(host)
        if self.sums_have_own_rule or last_layer_at_sums:
            self.sizes(host, paradigm)

    def _needed(self, batch: Batch, spans: Intervals) -> Sizes:
        sizes = needed(batch.sum_slot, batch.sum_valid, spans)
        return sizes._replace(tokens=len(batch.token.unique())) if self.plan.distinct_tokens else sizes
