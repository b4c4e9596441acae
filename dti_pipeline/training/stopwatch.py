"""Time as a measured quantity: seconds of training proper, and peak memory."""

from __future__ import annotations

import resource
import time

import torch


class Stopwatch:
    """Seconds of training proper: the watch stands still during evaluation, checkpoints and warm-up.

    On a GPU starting and stopping wait for the work that was queued, which is part of the time; nothing else does.
    """

    def __init__(self, seconds: float, device: torch.device) -> None:
        self._seconds, self._device = seconds, device
        self._since: float | None = None

    def start(self) -> None:
        self._since = self._now()

    def stop(self) -> float:
        """Stand still; seconds so far."""
        if self._since is not None:
            self._seconds += self._now() - self._since
            self._since = None
        return self._seconds

    def read(self) -> float:
        """Seconds so far, without stopping or waiting: of the last step whose numbers were read from the device."""
        return self._seconds + (time.perf_counter() - self._since if self._since is not None else 0.0)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the accelerator's allocator; of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
