"""The section of params.yaml about the training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from dti_pipeline.plain import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range, Share, require


@dataclass(frozen=True)
class TrainingConfig:
    """The loop. All counts are in targets, so that one recipe means the same for every paradigm."""

    REMOVED: ClassVar = {"text_loss_weight": "a next-token loss did not help; the click loss is the only one"}

    seed: NonNegativeInt = 7  # of initial weights, dropout and the order of rows
    epochs: NonNegativeFloat = 2.0  # passes over the training targets; fractions are fine; 0: publish it untrained
    targets_per_step: PositiveInt = 128  # about, over all processes: as many rows as hold so many on average
    tokens_per_batch: PositiveInt = 8192  # of a micro-batch, at most: whole rows; a step has as few as that allows
    learning_rate: PositiveFloat = 2e-3  # peak, of AdamW
    warmup_share: Share = 0.05  # of all targets; then cosine to final_learning_rate_share
    final_learning_rate_share: Share = 0.05  # of learning_rate, at the end
    weight_decay: NonNegativeFloat = 0.01  # of AdamW
    # Of AdamW. Its steps have one size whatever the gradients' size, so that noise moves a rare word as far as evidence
    # moves a frequent one. An epsilon of the size of rare words' gradients (1e-6 to 1e-4) shortens their steps.
    adam_epsilon: PositiveFloat = 1e-8
    max_gradient_norm: PositiveFloat = 1.0  # gradients are clipped to it
    # Decay of the exponential moving average of the weights over steps; the average is validated and published. It
    # costs one more copy of the trained weights. 0: no average, the weights themselves.
    average_decay: Annotated[float, Range(0, 1, "[)")] = 0.0
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU where there is one
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation
    # Small model on a GPU: micro-batches and updates are recorded as a CUDA graph and replayed.
    cuda_graph: bool = True
    # Of each layer only the input is kept for the backward pass, which computes the layer again: a third more
    # arithmetic (under LoRA a half), and activations of one layer instead of all. For what does not fit the memory.
    activation_checkpointing: bool = False
    evaluations: NonNegativeInt = 4  # times the validation targets are scored during training
    evaluation_targets: PositiveInt = 2000  # at most this many validation targets a time
    checkpoint_seconds: NonNegativeInt = 300  # resume state at least this often; 0: after every step
    processes: PositiveInt = 1  # more than one: started through torchrun, on one machine or several
    # none: each process holds the whole model. full: weights, gradients and moments are sharded over processes,
    # and a layer is gathered when it is computed (FSDP): for a model that does not fit one GPU; otherwise slower.
    sharding: Literal["none", "full"] = "none"

    def __post_init__(self) -> None:
        several = self.sharding == "none" or self.processes > 1
        require(several, "training.sharding", "none where training.processes is 1", self.sharding)
