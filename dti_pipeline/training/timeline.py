"""Where the time to a process's first optimizer step goes, in named parts."""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path

#: Counts the timelines of this process.
_begun = count()
#: Seconds of a part that are worth a word.
SHORTEST = 0.05


class Timeline:
    """Seconds since ``since``, a moment of ``time.monotonic``, each part of them under the name that ended it."""

    def __init__(self, since: float) -> None:
        self._last = since
        self.parts: dict[str, float] = {}

    @classmethod
    def begin(cls) -> Timeline:
        """From the process's start for the first work that it does, from now for any later one."""
        now = time.monotonic()
        return cls(now - process_age() if next(_begun) == 0 else now)

    def mark(self, name: str) -> None:
        """Everything since the last mark was ``name``."""
        now = time.monotonic()
        self.parts[name] = self.parts.get(name, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def told(parts: dict[str, float]) -> str:
    """The parts in words, without those that took no time to speak of."""
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items() if seconds >= SHORTEST)


def process_age() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    try:
        stat = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace")
        ticks = int(stat.rpartition(")")[2].split()[19])  # proc(5): field 22, since the machine started
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError):
        return 0.0
