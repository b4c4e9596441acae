"""The words of an interaction and of a user: templates filled in, the same for a log and for a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dti_pipeline.errors import InputError
from dti_pipeline.packing.settings import RATES

#: Seconds up to which a gap has a name, and the name; the last one has no end.
_GAPS = {
    1800: "same sitting",
    2 * 3600: "an hour",
    12 * 3600: "hours",
    36 * 3600: "a day",
    5 * 86400: "days",
    10 * 86400: "a week",
    30 * 86400: "weeks",
    np.inf: "months",
}
_BOUNDS = np.array(list(_GAPS)[:-1])
#: What `{gap}` may be; `first`: no row stands in the context.
GAPS = ("first", *_GAPS.values())


def render(template: str, item_id: str, item_text: str | None, more: Mapping[str, str] | None = None) -> str:
    """Text of an interaction with an item; one without a text is called by its id. ``more``: other values by name."""
    text = (item_text or "").strip() or f"item {item_id}"
    return template.format(item_id=item_id, item_text=text, **(more or {})).strip()


def stand_in(name: str) -> str:
    """A value of a column, where any will do."""
    return "5" if name in RATES else f"some {name}"


def render_user(template: str, values: Mapping[str, str]) -> str:
    """Text of a user with these values by name; empty where all of them are."""
    return template.format(**values).strip() if any(values.values()) else ""


@contextmanager
def filling_in(key: str, template: str) -> Iterator[None]:
    """Where the template that a params key holds is filled in: what its braces ask for may not be there."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"params key `{key}` is {template!r}, which cannot be filled in: {error}") from error


def gaps(times: NDArray[Any], seen: NDArray[Any], history: NDArray[Any] | int = 0) -> NDArray[np.int8]:
    """(m,) index into GAPS of the time since the last row that stands in each row's context.

    ``times`` (m,): seconds, when each row's request was made; no other time of a request is told before it. ``seen``
    (m,): rows of the user's history in the context. ``history``: first row of each row's user.
    """
    whole = np.floor(times)  # a fraction of a second changes no words
    passed = whole - whole[np.maximum(history + seen - 1, 0)]
    return np.where(seen > 0, 1 + np.searchsorted(_BOUNDS, passed, side="right"), 0).astype(np.int8)
