"""Measured quantities: seconds of training proper, and peak memory."""

from __future__ import annotations

import resource
import time

import torch


class Stopwatch:
    """Seconds of training proper, ``seconds`` of them before: stopped during evaluation and checkpoints.

    On a GPU starting and stopping wait for queued kernels, whose time counts; reading does not wait.
    """

    def __init__(self, seconds: float, device: torch.device) -> None:
        self._seconds, self._device = seconds, device
        self.start()

    def start(self) -> None:
        self._since = self._now()

    def stop(self) -> float:
        self._seconds += self._now() - self._since
        return self._seconds

    def read(self) -> float:
        """Seconds so far of a watch that runs."""
        return self._seconds + time.perf_counter() - self._since

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the accelerator's allocator; of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
