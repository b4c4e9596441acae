"""As many threads of a CPU as a training's micro-batches can use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Numbers of a layer's input, tokens times width, that each thread should have: with fewer, threads wait for each other
#: for longer than they work.
OF_A_THREAD = 2**17


@contextmanager
def enough_threads(device: torch.device, numbers: int) -> Iterator[None]:
    """Use the threads that a layer's input of so many ``numbers`` is worth on a CPU, never more than torch has."""
    most = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(max(1, min(most, numbers // OF_A_THREAD)))
    try:
        yield
    finally:
        torch.set_num_threads(most)
