"""The execution plan of a model: which optimisations compute its batches, each with the reason.

A plan is made once, when a model's device is known; nothing else decides. It is said at the start of a training and
kept in the model's manifest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import Any

import torch

#: Width from which a GPU's time is arithmetic; below it, the launches of kernels.
WIDE = 512
#: Width from which a graph of those launches brings nothing, however few tokens a micro-batch has.
WIDE_FOR_GRAPHS = 1024
#: Width from which an adapter's few products cost less than a gradient of the frozen weights.
WIDE_FOR_ADAPTERS = 3072
#: Bytes of a head's vector that fit into any card's shared memory, for the [SUM] rows' kernel; twice that otherwise.
KERNEL_HEAD_BYTES = 512


@dataclass(frozen=True)
class Choice:
    """An optimisation that is used or not, and why."""

    on: bool
    reason: str

    def __bool__(self) -> bool:
        return self.on


@dataclass(frozen=True)
class Traits:
    """Facts of a model that decide how it is computed."""

    width: int
    head_width: int
    last_layer_at_sums: bool  # its last layer gives the same at [SUM] rows alone
    projections_biased: bool  # keys or values have biases
    forgets: bool  # `model.forgetting` is not none
    embeds_tokens_alone: bool  # the first layer's input is a function of the token alone
    merges_adapters: bool = False  # it has LoRA adapters, over weights that they can be added to


@dataclass(frozen=True)
class ExecutionPlan:
    """How batches are computed on one device."""

    device: torch.device
    compute: torch.dtype  # of matrix products
    launch_bound: Choice
    last_layer_at_sums: Choice
    attention_kernel: Choice
    distinct_tokens: Choice
    sum_kernel: Choice
    merged_adapters: Choice
    compiled_layers: Choice
    compiled_surroundings: Choice
    cuda_graph: Choice

    @classmethod
    def make(
        cls,
        traits: Traits,
        device: torch.device,
        compute: torch.dtype = torch.float32,
        cuda_graph: bool = False,
        sharded: bool = False,
    ) -> ExecutionPlan:
        """The plan for a model with ``traits`` on ``device``. ``cuda_graph`` says whether one is wished for,
        ``sharded`` whether processes hold parts of the weights."""
        cuda, bound = device.type == "cuda", device.type == "cuda" and traits.width < WIDE
        on_gpu = cuda, "no CUDA device"
        has_triton = find_spec("triton") is not None, "no Triton"
        not_bound = not bound, "more kernels, and launches already take the time"
        head = traits.head_width
        fits = f"heads of {head} do not fit into shared memory"
        return cls(
            device=device,
            compute=compute,
            launch_bound=Choice(bound, f"width {traits.width}, on {device.type}"),
            last_layer_at_sums=_unless(
                "nobody reads other rows",
                (traits.last_layer_at_sums, "this architecture's last layer needs all rows"),
                not_bound,
            ),
            attention_kernel=_unless(
                "scores stay on the chip, and masked tiles are skipped",
                on_gpu,
                has_triton,
                (head * compute.itemsize <= 2 * KERNEL_HEAD_BYTES, fits),
            ),
            distinct_tokens=_unless(
                "forgetting projects each token once",
                (traits.forgets, "nothing is forgotten"),
                (traits.embeds_tokens_alone, "embeddings depend on more than the token"),
                not_bound,
            ),
            sum_kernel=_unless(
                "scores stay on the chip",
                on_gpu,
                has_triton,
                (head * compute.itemsize <= KERNEL_HEAD_BYTES, fits),
                (not (traits.forgets and traits.projections_biased), "keys or values have biases"),
            ),
            merged_adapters=_unless(
                "one product a layer instead of three",
                on_gpu,
                (traits.merges_adapters, "no adapters over plain weights"),
                (not sharded, "weights are sharded"),
                (traits.width < WIDE_FOR_ADAPTERS, f"at a width of {WIDE_FOR_ADAPTERS} or more adapters are cheap"),
            ),
            compiled_layers=_unless("one graph for all alike layers", on_gpu),
            compiled_surroundings=Choice(bound, "fewer launches" if bound else "not launch-bound"),
            cuda_graph=_unless(
                "launches would take the time",
                on_gpu,
                (cuda_graph, "training.cuda_graph is false"),
                (traits.width < WIDE_FOR_GRAPHS, f"at a width of {WIDE_FOR_GRAPHS} or more arithmetic takes the time"),
                (not sharded, "weights are sharded"),
            ),
        )

    @property
    def choices(self) -> dict[str, Choice]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Choice)}

    def without(self, name: str, reason: str) -> ExecutionPlan:
        """The plan without one of its choices."""
        changes: dict[str, Any] = {name: Choice(False, reason)}
        return replace(self, **changes)

    def lines(self) -> list[str]:
        """One readable line for all choices that one reason decides."""
        alike: dict[Choice, list[str]] = {}
        for name, choice in self.choices.items():
            alike.setdefault(choice, []).append(name.replace("_", " ").replace("sums", "[SUM] rows only"))
        return [f"{', '.join(names)}: {'yes' if one else 'no'} ({one.reason})" for one, names in alike.items()]

    def plain(self) -> dict[str, Any]:
        """What a manifest keeps."""
        choices = {name: {"on": choice.on, "reason": choice.reason} for name, choice in self.choices.items()}
        return {"device": self.device.type, "compute": str(self.compute).removeprefix("torch."), **choices}


def _unless(reason: str, *conditions: tuple[bool, str]) -> Choice:
    """On, for ``reason``; off where a condition does not hold, for the reason of the first such."""
    against = next((why for holds, why in conditions if not holds), None)
    return Choice(True, reason) if against is None else Choice(False, against)
