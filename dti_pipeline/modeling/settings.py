"""The section of params.yaml about the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from dti_pipeline.plain import NonNegativeInt, PositiveFloat, PositiveInt, Range, Share, require


@dataclass(frozen=True)
class LoraConfig:
    """LoRA adapters on a pretrained model (peft)."""

    rank: NonNegativeInt = 16  # 0: train every weight
    alpha: NonNegativeInt = 32  # adapters are scaled by alpha / rank
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")  # linear layers that get adapters, by name


@dataclass(frozen=True)
class ModelConfig:
    """The network: a Llama-style model from scratch, or any causal LM by name or path."""

    REMOVED: ClassVar = dict.fromkeys(
        ("name_dropout", "name_texts", "min_token_count"),
        "masked words did not help; for rare items see tokens.template and training.adam_epsilon (docs/recipe.md)",
    )

    name_or_path: str | None = None  # null: from scratch, in the shape below
    hidden_size: PositiveInt = 64  # from scratch only, as all of the shape; a multiple of heads
    layers: PositiveInt = 2  # decoder layers
    heads: PositiveInt = 4  # of queries
    kv_heads: PositiveInt = 4  # of keys and values: a divisor of heads
    intermediate_size: PositiveInt = 128  # of the gated MLP
    rope_theta: PositiveFloat = 10000.0  # base of the rotary frequencies
    tie_embeddings: bool = True  # input and output embeddings are one matrix
    # mimetic: queries and keys start as one map, so that a token attends to similar ones from the first step on
    # (Trockman & Kolter, arXiv 2305.09828); standard: independent normal weights. From scratch only.
    initialisation: Literal["standard", "mimetic"] = "mimetic"
    initial_std: PositiveFloat = 0.1  # of the weights, from scratch; 0.02 suits wide models and is too flat for narrow
    # pooled: [SUM] and label tokens enter the first layer with the mean embedding of their own item's text added, so
    # that a target matches similar past items from the first layer on. plain: tokens alone; small models then stay at
    # the user's and the item's rate (docs/recipe.md). From scratch only.
    summaries: Literal["plain", "pooled"] = "pooled"
    dropout: Annotated[float, Range(0, 1, "[)")] = 0.0  # on embeddings, attention and MLP outputs, from scratch only
    head: Literal["fresh", "verbaliser"] = "fresh"  # verbaliser: logit(yes) - logit(no) of the label tokens
    # Position encoding of [SUM] queries. rope: as any token. rope_alibi: the same with an ALiBi bias. nope_alibi: no
    # rotation of query and keys, distance through the ALiBi bias only.
    sum_position: Literal["rope", "rope_alibi", "nope_alibi"] = "rope"
    forgetting: Literal["none", "linear", "quadratic", "square_root"] = "none"  # family of a(d)
    forgetting_max: Share = 1.0  # a(d) at d = n
    lora: LoraConfig = field(default_factory=LoraConfig)  # for a pretrained model
    # Weights under adapters. plain: in training.dtype. float8: eight-bit products, on a GPU that has them.
    frozen_weights: Literal["plain", "float8"] = "plain"

    def __post_init__(self) -> None:
        frozen = self.name_or_path is not None and self.lora.rank > 0
        rule = "plain where every weight is trained"
        require(frozen or self.frozen_weights == "plain", "model.frozen_weights", rule, self.frozen_weights)
        rule = f"a multiple of model.heads ({self.heads})"
        require(self.hidden_size % self.heads == 0, "model.hidden_size", rule, self.hidden_size)
        rule = f"a divisor of model.heads ({self.heads})"
        require(self.heads % self.kv_heads == 0, "model.kv_heads", rule, self.kv_heads)
