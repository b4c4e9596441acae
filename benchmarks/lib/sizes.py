"""Options that say what a benchmark of training steps measures: a model's shape, what is trained, and how much."""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any, NamedTuple

import torch

from benchmarks.lib import llama
from dti_pipeline.config import ModelConfig
from dti_pipeline.lineage import versions
from dti_pipeline.planning.shape import SHAPES, Shape

#: Linear layers that get adapters, by the name that a table gives them.
LORA_MODULES = {
    "q_proj,v_proj": llama.QUERIES_AND_VALUES,
    "all-linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
RANK = 16
#: Columns that name a case: a call's rows take the place of an earlier call's of the same one.
CASE = ("model", "trained", "lora_modules", "frozen_weights", "activation_checkpointing")


class Usual(NamedTuple):
    """What a model of some size is measured with where nothing else is asked for."""

    tokens: int  # of a micro-batch, about
    tokens_per_interaction: int
    targets_per_step: int  # at least those of a micro-batch
    lora_modules: str


#: By the number of weights, up to which they hold.
USUAL = (
    (0.6e9, Usual(65_536, 17, 4096, "all-linear")),
    (2e9, Usual(32_768, 17, 2048, "all-linear")),
    (float("inf"), Usual(10_768, 30, 512, "q_proj,v_proj")),
)
TINY = Usual(384, 4, 512, "all-linear")


def add_options(options: argparse.ArgumentParser, several: bool = False) -> None:
    """Those of :func:`complete`; ``several`` shapes and trainings a call, or one."""
    add, many = options.add_argument, {"nargs": "+"} if several else {}
    add("--shape", choices=sorted(SHAPES), default="llama-3.1-8b", help="of the model (default: %(default)s)", **many)
    add("--layers", type=int, help="fewer, for a smaller card; the table says so (default: all)")
    add("--train", choices=("lora", "all"), default="lora", help="adapters, or all weights (default: lora)", **many)
    add("--lora-modules", choices=list(LORA_MODULES), help="what gets adapters (default: all-linear below 2 B weights)")
    add("--frozen-weights", choices=("plain", "float8"), default="plain", help="as model.frozen_weights")
    add("--activation-checkpointing", action="store_true", help="as training.activation_checkpointing, on both sides")
    add("--tokens", type=int, help="of a micro-batch, about (default: 65,536, 32,768 or 10,768 by the model's size)")
    add("--row-length", type=int, default=10_768, help="of the micro-batch's rows, about (default: %(default)s)")
    add("--tokens-per-interaction", type=int, help="text and label (default: 17; 30 for a model of 2 B weights)")
    add("--targets-per-step", type=int, help="of every variant (default: 4,096, 2,048 or 512 by the model's size)")
    add("--texts", choices=("zipf", "random"), default="zipf", help="how often tokens come again")


def cases(given: argparse.Namespace) -> list[argparse.Namespace]:
    """Every combination of several shapes and trainings, each complete."""
    combinations = product(*([value] if isinstance(value, str) else value for value in (given.shape, given.train)))
    found = [argparse.Namespace(**vars(given) | {"shape": shape, "train": train}) for shape, train in combinations]
    for case in found:
        complete(case)
    return found


def complete(given: argparse.Namespace) -> None:
    """Fill in what the shape decides, and was not asked for."""
    shape = shape_of(given)
    usual = TINY if given.tiny else next(usual for most, usual in USUAL if shape.parameters < most)
    for name, value in usual._asdict().items():
        if (given.tiny and name.startswith("tokens")) or getattr(given, name) is None:
            setattr(given, name, value)
    given.row_length = min(given.row_length, given.tokens)


def shape_of(given: argparse.Namespace) -> Shape:
    return llama.shape_named(llama.TINY.name if given.tiny else given.shape, given.layers)


def rows_per_batch(given: argparse.Namespace, k: int) -> int:
    """Rows of a micro-batch of about ``--tokens``, in the row length that prompts of ``k`` targets fill best; one more
    where 64 would divide its tokens (:data:`llama.OVER`)."""
    c = given.tokens_per_interaction
    _, length = llama.row_shape(llama.CONTEXT * c + k * (c + 1), given.row_length)
    rows = max(1, round(given.tokens / length))
    return rows if rows * length % 64 else rows + 1


def settings_of(given: argparse.Namespace) -> ModelConfig:
    """The model's configuration."""
    rank = RANK if given.train == "lora" else 0
    modules = LORA_MODULES[given.lora_modules]
    return llama.adapted(shape_of(given), rank, modules, frozen_weights=given.frozen_weights)


def facts_of(given: argparse.Namespace) -> dict[str, Any]:
    """Columns that say what was measured."""
    return {
        "model": shape_of(given).name,
        "trained": given.train,
        "lora_modules": given.lora_modules if given.train == "lora" else "",
        "frozen_weights": given.frozen_weights,
        "activation_checkpointing": given.activation_checkpointing,
        "n": llama.CONTEXT,
        "tokens_per_interaction": given.tokens_per_interaction,
        "torch": versions()["torch"],
    }


def precision(cpu: bool) -> tuple[str, torch.dtype]:
    """accelerate's name of the precision that is measured on a GPU, or on a CPU; and the type of its products."""
    return ("no", torch.float32) if cpu else ("bf16", torch.bfloat16)
