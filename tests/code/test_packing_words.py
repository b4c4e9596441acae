"""The words of an interaction: what they tell was known before it, and each text is stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.packing.tokenize import tokenize
from dti_pipeline.packing.vocabulary import load_tokenizer
from dti_pipeline.packing.words import GAPS, gaps
from dti_pipeline.paths import Paths
from tests.code.token_stores import publish_events

HOUR = 3600
Row = tuple[int, int | None, int]
#: A user's rows: (item, time, request). The third request has two.
ROWS: list[Row] = [
    (1, 0, 0),
    (2, HOUR, 1),
    (3, 2 * HOUR, 2),
    (4, 2 * HOUR, 2),
    (1, 27 * HOUR, 4),
    (1, 27 * HOUR + 60, 5),
]
TEMPLATE = "{gap}: {item_text}"


def config(template: str = TEMPLATE, context: str = "shown") -> Config:
    sections = {"validation": {"required": False}, "tokens": {"template": template, "vocab_size": 400}}
    return from_plain(Config, {**sections, "split": {"context": context}})


def write_events(paths: Paths, rows: list[Row], users: int = 1, known: int = 0) -> None:
    """A log of users who all did the same; ``known``: so many rows less than the request's first are known."""
    rows, count = rows * users, len(rows)
    table = {
        "item_id": pa.array([str(item) for item, _, _ in rows]),
        "item_text": [f"thing {item}" for item, _, _ in rows],
        "timestamp": pa.array([time for _, time, _ in rows], pa.int64()),
        "label": np.zeros(len(rows), np.int8),
        "split": ["train"] * len(rows),
        "position": np.tile(np.arange(count, dtype=np.int32), users),
        "request": np.array([request for _, _, request in rows], np.int32),
        "known": np.array([max(0, request - known) for _, _, request in rows], np.int32),
    }
    publish_events(paths, pa.table(table))


def texts(paths: Paths, settings: Config) -> list[str]:
    """Each row's text, from its tokens."""
    tokenize(settings, paths)
    store, tokenizer = TokenStore.open(paths.tokens), load_tokenizer(paths.tokens)
    spans = zip(store.offsets[store.text], store.offsets[store.text + 1], strict=True)
    return [tokenizer.decode(store.tokens[a:b]).strip() for a, b in spans]


def words(paths: Paths, rows: list[Row], context: str = "shown", known: int = 0) -> list[str]:
    write_events(paths, rows, known=known)
    return [text.partition(":")[0] for text in texts(paths, config(context=context))]


def test_gaps_are_named_in_their_order() -> None:
    edges = [0, 1799, 1800, 7199, 7200, 43199, 43200, 129599, 129600, 431999, 432000, 863999, 864000, 2591999, 2592000]
    found = [GAPS[gaps(np.array([0.0, edge + 0.9]), np.array([0, 1]))[1]] for edge in edges]
    assert found == [*(name for name in GAPS[1:-1] for _ in range(2)), GAPS[-1]]


def test_a_gap_is_since_the_request_before(home: Paths) -> None:
    assert words(home, ROWS) == ["first", "an hour", "an hour", "an hour", "a day", "same sitting"]


def test_a_request_is_made_at_its_earliest_time(home: Paths) -> None:
    """A click that carries its own time is not told by it."""
    clicked = [*ROWS[:3], (4, 90 * HOUR, 2), *ROWS[4:]]
    assert words(home, clicked) == ["first", "an hour", "an hour", "an hour", "a day", "same sitting"]


def test_a_gap_is_since_the_last_row_that_stands_in_the_context(home: Paths) -> None:
    assert words(home, ROWS, "known", known=1) == ["first", "first", "hours", "hours", "a day", "a day"]


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_a_gap_tells_nothing_of_the_own_request_nor_of_what_comes_later(home: Paths, tmp_path: Path, row: int) -> None:
    """Without its request's other rows, and those after it, a row is the same."""
    alone = [*ROWS[: ROWS[row][2]], ROWS[row]]
    assert words(Paths(tmp_path / "alone"), alone)[-1] == words(home, ROWS)[row]


def test_a_text_is_stored_once_for_each_item_and_gap(home: Paths) -> None:
    write_events(home, ROWS, users=50)
    found = texts(home, config())
    assert len(found) == 50 * len(ROWS)
    assert len(TokenStore.open(home.tokens).offsets) - 1 == len(set(found)) == 6


def test_a_template_without_a_gap_needs_no_clock_and_one_with_it_does(home: Paths) -> None:
    write_events(home, [(item, None, request) for item, _, request in ROWS])
    assert texts(home, config("{item_text}"))[0] == "thing 1"
    with pytest.raises(InputError, match=r"^the log has no timestamps, which \{gap\} in params key `tokens\.template`"):
        tokenize(config(), home)


@pytest.mark.parametrize("template", ["{item_text", "{}", "{item_text} {}"])
def test_a_template_that_is_none_is_one_sentence(template: str) -> None:
    with pytest.raises(InputError, match=r"^params key `tokens\.template` "):
        config(template)
