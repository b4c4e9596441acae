"""What a history in a request knows of itself: which rows are one request, and whose labels each row is told.

The rule of :mod:`dti_pipeline.events.ingest`, by which the model's log was read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.packing.report import Knowledge


def known_rows(
    rule: Knowledge, labels: Sequence[int | None], times: Sequence[float], now: float | None
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Of the h rows of a history and of a request made ``now``, behind them: the first row of its request, and how many
    labels it knows; (h + 1,) both.

    ``labels``: None where one is not known yet. ``times``: seconds, ascending; none: each row is a request of its own,
    and knows all before it.
    """
    rows = len(labels)
    request = known = np.arange(rows + 1)
    if len(times):
        asked = np.append(np.asarray(times, np.float64), np.inf if now is None else now)
        asked = np.floor(asked) if rule.whole_seconds else np.round(asked * 1e6) / 1e6  # as the log's are
        if rule.ties == "together":
            request = np.searchsorted(asked[:-1], asked, side="left")
        known = request
        if rule.feedback_delay is not None:
            known = np.minimum(request, np.searchsorted(asked[:-1], asked - rule.feedback_delay, side="right"))
    unknown = next((row for row, label in enumerate(labels) if label is None), rows)
    return request.astype(np.int32), np.minimum(known, unknown).astype(np.int32)
