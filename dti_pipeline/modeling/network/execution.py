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
WIDE = 1024
#: Trained tensors from which the compiler takes minutes for clipping and the optimizer's step, or gives up.
MANY_TENSORS = 200
#: Bytes of a head's vector that fit into any card's shared memory, for the [SUM] rows' kernel.
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
    trained_tensors: int


@dataclass(frozen=True)
class ExecutionPlan:
    """How batches are computed on one device."""

    device: torch.device
    compute: torch.dtype  # of matrix products
    launch_bound: Choice
    last_layer_at_sums: Choice
    reordered_keys: Choice
    distinct_tokens: Choice
    sum_kernel: Choice
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
        processes: int = 1,
        sharded: bool = False,
    ) -> ExecutionPlan:
        """The plan for a model with ``traits`` on ``device``. ``cuda_graph`` says whether one is wished for,
        ``sharded`` whether processes hold parts of the weights."""
        cuda = device.type == "cuda"
        bound = cuda and traits.width < WIDE
        tensors = traits.trained_tensors
        on_cpu = Choice(False, "no CUDA device")
        of_launches = Choice(False, "more kernels, and launches already take the time")

        def where_arithmetic_takes_time(reason: str) -> Choice:
            return on_cpu if not cuda else of_launches if bound else Choice(True, reason)

        last = Choice(True, "nobody reads other rows") if not bound else of_launches
        if not traits.last_layer_at_sums:
            last = Choice(False, "this architecture's last layer needs all rows")
        distinct = Choice(not bound, "forgetting projects each token once") if not bound else of_launches
        if not traits.forgets:
            distinct = Choice(False, "nothing is forgotten")
        elif not traits.embeds_tokens_alone:
            distinct = Choice(False, "embeddings depend on more than the token")
        graph = Choice(True, "launches would take the time")
        for ok, reason in (
            (cuda, on_cpu.reason),
            (cuda_graph, "training.cuda_graph is false"),
            (bound, f"at a width of {WIDE} or more arithmetic takes the time"),
            (
                traits.trained_tensors < MANY_TENSORS,
                f"an update of {traits.trained_tensors} tensors compiles for minutes",
            ),
            (processes == 1 and not sharded, "several processes exchange gradients"),
        ):
            if not ok:
                graph = Choice(False, reason)
                break
        return cls(
            device=device,
            compute=compute,
            launch_bound=Choice(bound, f"width {traits.width}, on {device.type}"),
            last_layer_at_sums=last,
            reordered_keys=where_arithmetic_takes_time("most blocks of keys are visible as a whole"),
            distinct_tokens=distinct,
            sum_kernel=_kernel(traits, device, compute),
            compiled_layers=Choice(True, "one graph for all alike layers") if cuda else on_cpu,
            compiled_surroundings=Choice(True, "fewer launches") if bound else Choice(False, "not launch-bound"),
            cuda_graph=graph,
        )

    @property
    def choices(self) -> dict[str, Choice]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Choice)}

    def without(self, name: str, reason: str) -> ExecutionPlan:
        """The plan without one of its choices."""
        changes: dict[str, Any] = {name: Choice(False, reason)}
        return replace(self, **changes)

    def lines(self) -> list[str]:
        """One readable line a choice."""
        names = {name: name.replace("_", " ").replace("sums", "[SUM] rows only") for name in self.choices}
        return [f"{names[name]}: {'yes' if one else 'no'} ({one.reason})" for name, one in self.choices.items()]

    def plain(self) -> dict[str, Any]:
        """What a manifest keeps."""
        choices = {name: {"on": choice.on, "reason": choice.reason} for name, choice in self.choices.items()}
        return {"device": self.device.type, "compute": str(self.compute).removeprefix("torch."), **choices}


def _kernel(traits: Traits, device: torch.device, compute: torch.dtype) -> Choice:
    if device.type != "cuda":
        return Choice(False, "no CUDA device")
    if find_spec("triton") is None:
        return Choice(False, "no Triton")
    if traits.head_width * compute.itemsize > KERNEL_HEAD_BYTES:
        return Choice(False, f"heads of {traits.head_width} do not fit into shared memory")
    if traits.forgets and traits.projections_biased:
        return Choice(False, "keys or values have biases")
    return Choice(True, "scores stay on the chip")
