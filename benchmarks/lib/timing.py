"""Times of calls, on a CPU or by a GPU's own clock, and what fits into a budget of seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


def affordable(items: Iterable[Item], seconds: float, reserve: Callable[[], float] = lambda: 0.0) -> Iterator[Item]:
    """Items in turn, each if as much time is left as the longest of them took, and ``reserve`` seconds beside it."""
    begun, longest = time.monotonic(), 0.0
    for item in items:
        start = time.monotonic()
        if start - begun + longest + reserve() > seconds:
            print(f"no time left for {item}")
            continue
        yield item
        longest = max(longest, time.monotonic() - start)
        print(f"{item} took {time.monotonic() - start:.0f} s", flush=True)


def median_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """Median CPU time of a call, after one that is not counted."""
    return statistics.median(alternate({"it": call}, repeats)["it"])


def alternate(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU times of several calls taken in turn, so that a busy moment hits all of them; the first turn is not kept.

    CPU time of this process is what one thread takes on a machine that does nothing else: callers use one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def mark(device: torch.device) -> Any:
    """This moment in the device's queue of work."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Milliseconds between two marks; on a GPU it waits for the end."""
    if isinstance(start, float):
        return (end - start) * 1000
    end.synchronize()
    return start.elapsed_time(end)


def product_teraflops(device: torch.device) -> float:
    """What ``device`` makes of one product of large matrices of random numbers, 10^12 FLOP/s: in bfloat16 on a GPU, and
    of small ones on a CPU. Zeros would take less power, and a card less time. Memory: 400 MB on a GPU."""
    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (256, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(12):
        start = mark(device)
        a @ b
        times.append((start, mark(device)))
    milliseconds = statistics.median(between(*pair) for pair in times[2:])
    return 2 * size**3 / milliseconds / 1e9


def peak_memory_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0


def forget_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def gpus(device: torch.device, count: int = 1) -> list[str]:
    """Names of the GPUs in use; none on a CPU."""
    return [torch.cuda.get_device_name()] * count if device.type == "cuda" else []
