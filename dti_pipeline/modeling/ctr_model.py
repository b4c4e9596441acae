"""P(click) at every [SUM]: a causal LM under one paradigm's mask, and a two-way head on the [SUM] states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dti_pipeline import artifacts
from dti_pipeline.config import ModelConfig
from dti_pipeline.errors import InputError
from dti_pipeline.modeling import backbone, compiler, float8, layers
from dti_pipeline.modeling.attention import ROWS, View, bands, heads_together, kernel_options
from dti_pipeline.modeling.batch import Batch
from dti_pipeline.modeling.distance import alibi_slopes
from dti_pipeline.modeling.distinct import Distinct
from dti_pipeline.modeling.masks import LABEL, SUM, TEXT, BlockMasks, Intervals, intervals
from dti_pipeline.modeling.sum_rows import Initial, Rule, Sizes, SumRows, needed, sum_rows
from dti_pipeline.modeling.text_keys import TextMasks
from dti_pipeline.plain import from_plain

HEAD = "head.safetensors"
#: Width from which a GPU's time is arithmetic.
WIDE = 1024


class CTRModel(nn.Module):
    """The network, the mask and the head. ``forward`` maps a batch to one logit a target."""

    def __init__(
        self,
        settings: ModelConfig,
        paradigm: str,
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
        # A pretrained model knows how to read a text; one that starts from nothing is helped (ModelConfig.summaries).
        self.pooled = settings.name_or_path is None and settings.summaries == "pooled" if pooled is None else pooled
        self.has_prefix = prefix_length > 0
        trained_tokens = [special[role] for role in ("sum", "no", "yes")]
        self.lm = backbone.build(settings, vocabulary, row_length, trained_tokens, frozen_dtype, lm)
        decoder = backbone.decoder_of(self.lm)
        self.narrows = layers.narrows(decoder.layers[-1])
        width = decoder.config.get_text_config().hidden_size
        heads = decoder.config.get_text_config().num_attention_heads
        self.wide = width >= WIDE
        self.head_width = getattr(decoder.config.get_text_config(), "head_dim", None) or width // heads
        self.head = nn.Linear(width, 2) if settings.head == "fresh" else None
        if self.head is not None:
            nn.init.zeros_(self.head.weight)  # starts at P = 1/2 for everyone: the first steps are calm
            nn.init.zeros_(self.head.bias)
        self.label_tokens: Tensor
        self.trained_tokens: Tensor
        self.slopes: Tensor
        self.register_buffer("label_tokens", torch.tensor([special["no"], special["yes"]]), persistent=False)
        self.register_buffer("trained_tokens", torch.tensor(trained_tokens), persistent=False)
        self.register_buffer("slopes", alibi_slopes(heads), persistent=False)
        self._block_masks: dict[tuple[int, int], BlockMasks] = {}  # by shape of a batch
        self._largest: dict[tuple[object, ...], Sizes] = {}
        self._fused: Callable[..., Any] = compiler.as_it_is

    def forward(self, batch: Batch) -> Tensor:
        """(T,) logits of P(label = 1), fp32, in the order of ``batch.sum_index``."""
        embedded = self._fused(CTRModel.embed)(self, batch)
        view = self.view(batch, embedded, narrow=self._saves_by_narrowing())
        hidden = self.states(embedded, batch.position, view)
        index = batch.sum_index
        if view.narrow:
            index = index // batch.token.shape[1] * hidden.shape[1] + batch.sum_within
        return self._fused(CTRModel._logits_at, dynamic=True)(self, hidden, index)

    @property
    def waits_for_launches(self) -> bool:
        """Whether a step's time is the launches of its kernels rather than their arithmetic: of a small model on a
        GPU. Its training can be a CUDA graph (:mod:`dti_pipeline.training.graphed`)."""
        return self.slopes.is_cuda and not self.wide

    @property
    def sums_differ(self) -> bool:
        """Whether [SUM] rows obey another rule than the mask alone."""
        return self.settings.sum_position != "rope" or self.settings.forgetting != "none"

    @property
    def projects_distinct_tokens(self) -> bool:
        """Whether forgetting projects what enters the first layer for each distinct token of a batch once. It must be a
        function of the token alone, as in a pretrained model: one from scratch may add the texts' means, hide words, or
        drop out. And where launches are what takes time, this adds some."""
        of_token_alone = self.settings.name_or_path is not None and not self.pooled
        return self.settings.forgetting != "none" and of_token_alone and not self.waits_for_launches

    def _saves_by_narrowing(self) -> bool:
        """Whether the last layer shall work at [SUM] rows only: always where arithmetic is what takes time, but where
        launches do, this adds some."""
        return self.narrows and not self.waits_for_launches

    def embed(self, batch: Batch) -> Tensor:
        """(B, L, E): what enters the first layer."""
        embedded = backbone.embed(self.lm, batch.token, self.trained_tokens)
        return embedded + pooled_texts(embedded, batch.kind) if self.pooled else embedded

    def states(self, embedded: Tensor, position: Tensor, view: View) -> Tensor:
        """(B, L, E), or (B, S, E) of a narrow view: what leaves the last layer and its norm."""
        decoder = backbone.decoder_of(self.lm)
        backbone.require_ours(decoder)
        return decoder(
            inputs_embeds=embedded, position_ids=position, attention_mask=None, use_cache=False, dti=view
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

    def view(self, batch: Batch, embedded: Tensor, narrow: bool = False) -> View:
        """What the layers need to know of the batch. ``embedded`` (B, L, E) enters the first layer; ``narrow``: only
        [SUM] rows are to leave the last."""
        spans = self._fused(intervals)(batch.tokens, self.paradigm, self.context)
        device = batch.token.device
        moves_keys = device.type == "cuda" and not self.waits_for_launches
        sums = None
        if narrow or self.sums_differ or moves_keys:
            sums = self._sum_rows(batch, spans, embedded)
        if device.type != "cuda":
            return View(bands=bands(spans), sums=sums, narrow=narrow)
        shape = (batch.token.shape[0], batch.token.shape[1])
        if shape not in self._block_masks:
            heads = heads_together(backbone.decoder_of(self.lm).layers)
            kind = TextMasks if moves_keys else BlockMasks
            self._block_masks[shape] = kind(*shape, device, self.has_prefix, ROWS, heads)
        masks = self._block_masks[shape]
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else embedded.dtype
        blind = self.sums_differ and not moves_keys  # queries that have a rule of their own are computed elsewhere
        return View(
            block_mask=masks.build(spans.blind_sums() if blind else spans, self._fused),
            texts=masks.keys if isinstance(masks, TextMasks) else None,
            options=kernel_options(device, dtype, self.head_width),
            sums=sums,
            narrow=narrow,
        )

    def _sum_rows(self, batch: Batch, spans: Intervals, embedded: Tensor) -> SumRows:
        forgets = self.settings.forgetting != "none"
        sizes = self._sizes(batch, spans)
        return sum_rows(
            batch.sum_slot,
            batch.sum_valid,
            Rule(
                spans=spans,
                position=batch.position,
                interaction=batch.interaction,
                context=self.context,
                alibi=self.settings.sum_position != "rope",
                family=self.settings.forgetting,
                maximum=self.settings.forgetting_max,
            ),
            self.slopes,
            sizes,
            keep_rotation=self.settings.sum_position != "nope_alibi",
            initial=self._initial(batch, embedded, sizes.tokens) if forgets else None,
        )

    def _initial(self, batch: Batch, embedded: Tensor, distinct: int) -> Initial:
        # A view: one tensor in two places would make the first layer, whose input it is too, other code to compile.
        state = embedded.view_as(embedded)
        initial = Initial.of(state, backbone.trained_rows(self.lm), batch.token, self.trained_tokens)
        return replace(initial, distinct=Distinct.of(batch.token, embedded, distinct)) if distinct else initial

    def _sizes(self, batch: Batch, spans: Intervals) -> Sizes:
        """On a CPU what the batch needs. On a GPU, where new sizes are a compilation and reading any from it is a wait,
        what its copy in the CPU's memory needs."""
        return self._needed(batch, spans) if batch.host is None else self.sizes(batch.host)

    def sizes(self, host: Batch) -> Sizes:
        """What a batch, in the CPU's memory, needs on a GPU: no less than the batches before that looked like it."""
        here = self._needed(host, intervals(host.tokens, self.paradigm, self.context))
        kind = (self.paradigm, *host.token.shape)
        self._largest[kind] = here.rounded().at_least(self._largest.get(kind, here))
        return self._largest[kind]

    def _needed(self, batch: Batch, spans: Intervals) -> Sizes:
        sizes = needed(batch.sum_slot, batch.sum_valid, spans)
        return sizes._replace(tokens=len(batch.token.unique())) if self.projects_distinct_tokens else sizes

    def freeze(self, device: torch.device) -> None:
        """Move to ``device``; there, round frozen weights as ``model.frozen_weights`` says."""
        self.to(device)
        if self.settings.frozen_weights == "float8":
            float8.freeze(backbone.decoder_of(self.lm).layers, device)

    def compile_layers(self) -> None:
        """Compile each decoder layer: all share one graph, the last has its own; and of a small model, for which many
        short kernels take longer than a long one, what is before and behind them.
        Rows must then have one length, batches one height; sizes of [SUM] rows may grow a few times, and each time is a
        graph more.

        Graphs of models that were compiled before are forgotten: they would count as this one's."""
        torch.compiler.reset()
        compiler.allow_graphs()
        decoder = backbone.decoder_of(self.lm)
        for layer in decoder.layers:
            layer.compile(dynamic=False)
        if self.waits_for_launches:
            self._fused = cache(compiler.fused)
            for module in (getattr(decoder, "rotary_emb", None), getattr(decoder, "norm", None)):
                if module is not None:
                    module.compile(dynamic=False)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Weights (or adapters) and head as safetensors, with the configuration to load them again.

        ``weights``: those of :meth:`trained`, whole, where the model's own are shared out over processes.
        """
        # peft would add the whole embedding matrix where it was resized; its new rows are among the adapters.
        adapters = {"save_embedding_layers": False} if hasattr(self.lm, "peft_config") else {}
        state: dict[str, Any] = {"state_dict": _under("lm.", weights)} if weights is not None else {}
        self.lm.save_pretrained(folder / "lm", **adapters, **state)
        if self.head is not None:
            head = self.head.state_dict() if weights is None else _under("head.", weights)
            save_file({k: v.detach().cpu().contiguous() for k, v in head.items()}, folder / HEAD)


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


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


def load(folder: Path, device: str | torch.device = "cpu") -> CTRModel:
    """A model that ``dti train`` published, ready to score. Raises InputError where the folder is not one."""
    manifest = artifacts.read(folder, "train")
    facts = manifest.report["network"]
    settings = from_plain(ModelConfig, manifest.config["model"], "model")
    if settings.name_or_path is None or settings.lora.rank == 0:
        # All weights are in the folder: the shape comes from there, not from where training started.
        settings = from_plain(
            ModelConfig, {**manifest.config["model"], "name_or_path": str(folder / "lm"), "lora": {"rank": 0}}, "model"
        )
    # In the precision it was trained in, where that is one of the device's own.
    half = torch.device(device).type == "cuda" and manifest.config.get("training", {}).get("dtype") == "bfloat16"
    model = CTRModel(settings, **facts, frozen_dtype=torch.bfloat16 if half else torch.float32)
    if settings.lora.rank and (folder / "lm" / "adapter_model.safetensors").is_file():
        model.lm.load_adapter(str(folder / "lm"), adapter_name="default")
    if model.head is not None:
        if not (folder / HEAD).is_file():
            raise InputError(f"{folder / HEAD} is missing: run `dti train` again")
        model.head.load_state_dict(load_file(folder / HEAD))
    if settings.frozen_weights == "float8" and half:
        model.freeze(torch.device(device))
    return model.to(device).eval()


def network_facts(
    model: CTRModel, vocabulary: int, row_length: int, special: dict[str, int], prefix: int
) -> dict[str, Any]:
    """What :func:`load` needs to build the same network again; it goes into the model's manifest."""
    return {
        "paradigm": model.paradigm,
        "context": model.context,
        "vocabulary": vocabulary,
        "row_length": row_length,
        "special": special,
        "prefix_length": prefix,
        "pooled": model.pooled,
    }
