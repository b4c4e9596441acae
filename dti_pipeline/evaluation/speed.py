"""How much less a target costs in training than the baseline's, and how much of that may be claimed.

On a GPU the clock decides. On a CPU it does not: other work on the machine moves it, and large steps use more threads
than small ones. Processor seconds are hardly moved, and decide. No claim goes beyond the ratio of tokens, since less
work cannot save more than itself.
"""

from __future__ import annotations

from dti_pipeline.evaluation.report import Speed
from dti_pipeline.training.report import TrainingSummary

#: Of its time by the clock, a training that has the processor to itself computes at least so much.
ALONE = 0.9


def compared(base: TrainingSummary, other: TrainingSummary) -> Speed:
    """The cost of a target of ``other`` against the baseline's."""
    seen = other.targets / base.targets
    clock, tokens = seen * base.train_seconds / other.train_seconds, seen * base.tokens / other.tokens
    if "cuda" in (base.device, other.device):
        return Speed(clock, None, tokens, True)
    processor = seen * base.processor_seconds / other.processor_seconds
    alone = all(one.processor_seconds >= ALONE * one.train_seconds for one in (base, other))
    return Speed(clock, processor, tokens, alone)


def claimed(speed: Speed) -> float:
    """The speed-up that no other work on the machine can have made, at most the ratio of tokens."""
    return min(speed.tokens, speed.clock if speed.processor is None else speed.processor)


def figures(speed: Speed) -> dict[str, float]:
    """What was measured beside the claim, by name."""
    found = {"speedup_clock": speed.clock if speed.undisturbed else None, "speedup_processor": speed.processor}
    return {name: value for name, value in found.items() if value is not None} | {"fewer_tokens": speed.tokens}


def in_words(speed: Speed) -> str:
    """What a claim rests on."""
    bound = f"at most the ratio of tokens, {speed.tokens:.1f}x"
    if speed.processor is None:
        return bound
    clock = f", {speed.clock:.1f}x by the clock" if speed.undisturbed else ""
    return f"{speed.processor:.1f}x by processor seconds{clock}; {bound}"
