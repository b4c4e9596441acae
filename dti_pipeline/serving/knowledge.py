"""What a history in a request knows of itself: which rows are one request, and whose labels each row is told.

The rule of :mod:`dti_pipeline.events.ingest`, by which the model's log was read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from hashlib import md5
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.packing.report import Knowledge
from dti_pipeline.serving.requests import Request, first_times

#: Seconds: of two requests of one moment, which ids tell apart, none knows a label of the other.
MOMENT = 1e-6
#: Behind every hash: a request without an id is the last of its time.
LAST = "~"
#: What orders requests: when they begin, a hash of the id, their first row.
Key = tuple[float, str, int]


def known_rows(
    rule: Knowledge,
    labels: Sequence[int | None],
    times: Sequence[float],
    now: float | None,
    ids: Sequence[str] = (),
    own: str | None = None,
    gone: Sequence[float] = (),
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Of the h rows of a history and of a request made ``now``, behind them: the first row of its request, and how many
    labels it knows; (h + 1,) both.

    ``labels``: None where one is not known yet. ``times``: seconds, ascending; none: each row is a request of its own,
    and knows all before it. ``ids``: of the requests that the rows were shown in, which stand as :func:`in_order` has
    them, and ``own``, of the request itself; none: rows of one time are one request. ``gone``: times of earlier rows of
    the first one's request.
    """
    rows = len(labels)
    request = known = np.arange(rows + 1)
    if len(ids):
        request, known = _named(rule, times, now, ids, own, gone)
    elif len(times):
        asked = _moments(rule, [*times, np.inf if now is None else now])
        if rule.ties == "together":
            request = np.searchsorted(asked[:-1], asked, side="left")
        known = request
        if rule.feedback_delay is not None:
            known = np.minimum(request, np.searchsorted(asked[:-1], asked - rule.feedback_delay, side="right"))
    unknown = next((row for row, label in enumerate(labels) if label is None), rows)
    return request.astype(np.int32), np.minimum(known, unknown).astype(np.int32)


def in_order(rule: Knowledge, asked: Request) -> Request:
    """The request with the rows of its history as a log orders them: by the time that their request begins, and the
    rows of one, whose own order could tell their labels, by a hash of the item. A row without an item's id stays where
    it is among those of its request."""
    rows = range(len(asked.history))
    keys: Sequence[float | Key]
    if asked.ids:
        of = _keys(rule, asked.times, asked.ids)
        keys = [of[one] for one in asked.ids]
    elif _together(rule, asked.times):
        keys = _moments(rule, asked.times).tolist()
    else:
        return asked
    if len(set(keys)) == len(keys) and all(one <= two for one, two in pairwise(keys)):  # type: ignore[operator]
        return asked
    hashes = ["" if item.item_id is None else _hash(item.item_id) for item in asked.history]
    order = sorted(rows, key=lambda row: (keys[row], hashes[row]))
    return replace(
        asked,
        history=tuple([asked.history[row] for row in order]),
        labels=tuple([asked.labels[row] for row in order]),
        times=tuple([asked.times[row] for row in order]) if asked.times else (),
        ids=tuple([asked.ids[row] for row in order]) if asked.ids else (),
    )


def _hash(text: str) -> str:
    return md5(text.encode()).hexdigest()


def is_in_order(rule: Knowledge, times: Sequence[float], ids: Sequence[str], gone: Sequence[float] = ()) -> bool:
    """Whether requests stand as :func:`in_order` has them."""
    keys = _keys(rule, times, ids, gone)
    return all(keys[one] <= keys[two] for one, two in pairwise(ids))


def made(asked: Request) -> list[float | None]:
    """(h + 1,) When the request of each row was made, at the earliest of its times, and the request itself."""
    if not asked.ids:
        return [*asked.times, asked.time]
    begins = first_times(asked.ids, asked.times)
    return [*(begins[one] for one in asked.ids), begins.get(asked.request_id or "", asked.time)]


def _moments(rule: Knowledge, times: Sequence[float]) -> NDArray[np.float64]:
    """Times as the log's are."""
    asked = np.asarray(times, np.float64)
    return np.floor(asked) if rule.whole_seconds else np.round(asked * 1e6) / 1e6


def _keys(rule: Knowledge, times: Sequence[float], ids: Sequence[str], gone: Sequence[float] = ()) -> dict[str, Key]:
    """What orders the requests of a history, by id."""
    moments = _moments(rule, [*gone, *times]).tolist() if len(times) else [0.0] * len(ids)
    begins = first_times([*[ids[0]] * len(gone), *ids], moments)
    first = {one: row for row, one in reversed([*enumerate(ids)])}
    together = _together(rule, times)
    return {one: _key(together, begin, one, first[one]) for one, begin in begins.items()}


def _together(rule: Knowledge, times: Sequence[float]) -> bool:
    """Whether a file's order tells nothing of rows of one time."""
    return rule.ties == "together" and len(times) > 0


def _key(together: bool, begin: float, one: str | None, first: int) -> Key:
    if not together:
        return begin, "", first
    return begin, LAST if one is None else _hash(one), 0


def _named(
    rule: Knowledge,
    times: Sequence[float],
    now: float | None,
    ids: Sequence[str],
    own: str | None,
    gone: Sequence[float],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """:func:`known_rows`, of rows whose requests have ids, before it looks at labels that are not there."""
    keys, together = _keys(rule, times, ids, gone), _together(rule, times)
    asked = [keys[one] for one in ids]
    if own in keys:
        mine = keys[own]
    else:
        begin = float(_moments(rule, [np.inf if now is None else now])[0]) if len(times) else 0.0
        mine = _key(together, begin, own, len(ids))
    request = np.array([bisect_left(asked, key) for key in (*asked, mine)])
    delay = rule.feedback_delay
    if together:
        delay = max(delay or 0.0, MOMENT / 2)
    if delay is None or not len(times):
        return request, request
    moments = _moments(rule, [*gone, *times]).tolist()
    ends = dict[str, float]()
    for one, time in zip([*[ids[0]] * len(gone), *ids], moments, strict=True):
        ends[one] = max(time, ends.get(one, time))
    since = np.maximum.accumulate([ends[one] for one in ids])
    begins = np.array([begin for begin, _, _ in (*asked, mine)])
    return request, np.minimum(request, np.searchsorted(since, begins - delay, side="right"))
