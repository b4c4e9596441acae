"""Values that no person would write: how they are drawn, and how what comes of them is judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import hypothesis
import pytest
from hypothesis import strategies as st

from dti_pipeline.errors import CheckFailed, InputError

T = TypeVar("T")

#: Words that readers have stumbled over, here or elsewhere.
WORDS = [
    "", " ", "0", "1", "-1", "007", "12.0", "1e400", "nan", "-inf", "NULL", "\\N", "true", "9" * 400, "1.5",
    "1600000000", "2020-13-45", "2020-02-30T25:61:00Z", "'", '"', '""', '"a,b"', "a\tb", "a\rb", "\0", "\x1b[31m",
    "[bold]", "é", "e\u0301", "\ufeff", "\u202e", "\u2028", "\U0001f600", "\ud83d", "<script>alert(1)</script>",
    "'; DROP TABLE events; --", "${x}", "$(id)", "`id`", "../../etc/passwd", "{item_text}", "{", "}", "%s", "[SUM]",
    "[YES]", "</s>", "<|endoftext|>", "::", "|", ";",
]  # fmt: skip
TEXT = st.sampled_from(WORDS) | st.text(max_size=12)
NUMBER = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**31, 2**63, 2**64, 10**400, 1e308, 1_600_000_000])
PLAIN = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def counts(some: int, many: int) -> pytest.MarkDecorator:
    """Runs a test with ``some`` examples, and by `make test-slow` with ``many``."""
    return pytest.mark.parametrize("examples", [some, pytest.param(many, marks=pytest.mark.long)])


def each(strategy: st.SearchStrategy[T], examples: int, check: Callable[[T], None], found: Iterable[T] = ()) -> None:
    """Check ``found``, inputs that once failed, and then drawn ones: the same at each run."""
    for value in found:
        check(value)
    limits = hypothesis.settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    limits(hypothesis.given(strategy)(check))()


def refused(act: Callable[[], T]) -> T | None:
    """What comes of it; None where it is refused in one sentence. Any other exception is a fault."""
    try:
        return act()
    except (InputError, CheckFailed) as error:
        said = str(error)
        assert said
        assert len(said.splitlines()) == 1, said
        assert len(said) < 4000, f"{len(said)} characters"
        said.encode()
    return None


@st.composite
def damaged(draw: st.DrawFn, good: bytes, most: int = 6) -> bytes:
    """Bytes of which some are changed, put in, doubled or cut off."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        how = draw(st.sampled_from(["flip", "insert", "word", "repeat", "remove", "cut"]))
        end = min(len(data), at + draw(st.integers(1, 40)))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=6))
        elif how == "word":
            data[at:at] = draw(st.sampled_from(WORDS)).encode("utf-8", "surrogatepass")
        elif how == "repeat":
            data[end:end] = data[at:end] * draw(st.integers(1, 3))
        elif how == "remove":
            del data[at:end]
        elif draw(st.booleans()):
            del data[at:]
    return bytes(data)


def as_json(value: Any) -> bytes:
    """A value as JSON, half characters and numbers that are none among it."""
    with suppress(ValueError):  # more digits than Python writes
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"{}"
