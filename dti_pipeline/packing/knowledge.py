"""What each row of a history knows of the rows before it: which stand in its context, and whose labels it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Knowledge:
    """The part of ``split`` that says so, as a log was read by it; :mod:`dti_pipeline.events.ingest` does the same."""

    feedback_delay: float | None = None
    context: Literal["shown", "known"] = "shown"
    ties: Literal["together", "ordered"] = "together"

    def of(
        self, labels: Sequence[int | None], times: Sequence[float], now: float | None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Of the h rows of a history and of a request made ``now``, behind them: the first row of its request, and how
        many labels it knows; (h + 1,) both.

        ``labels``: None where one is not known yet. ``times``: seconds, ascending; none: each row is a request of its
        own, and knows all before it.
        """
        rows = len(labels)
        request = known = np.arange(rows + 1)
        if len(times):
            asked = np.append(np.asarray(times, np.float64), np.inf if now is None else now)
            if self.ties == "together":
                request = np.searchsorted(asked[:-1], asked, side="left")
            known = request
            if self.feedback_delay is not None:
                known = np.minimum(request, np.searchsorted(asked[:-1], asked - self.feedback_delay, side="right"))
        unknown = next((row for row, label in enumerate(labels) if label is None), rows)
        return request.astype(np.int32), np.minimum(known, unknown).astype(np.int32)
