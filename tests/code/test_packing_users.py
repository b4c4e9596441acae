"""The texts of users: one for each, empty where nothing is known, and refused where a column is not of the user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dti_pipeline import artifacts
from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import InputError
from dti_pipeline.packing import log_columns
from dti_pipeline.packing.report import TokenizeReport
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.packing.tokenize import tokenize
from dti_pipeline.packing.vocabulary import load_tokenizer
from dti_pipeline.paths import Paths
from tests.code.token_stores import publish_events


def write(home: Paths, **columns: list[str]) -> None:
    """Users a, b, .. of two rows each; ``columns``: values of the users."""
    write_rows(home, **{name: np.repeat(values, 2).tolist() for name, values in columns.items()})


def write_rows(home: Paths, **columns: list[str]) -> None:
    """The same; ``columns``: values of the rows."""
    rows = len(next(iter(columns.values())))
    table = {
        "user_id": [chr(ord("a") + row // 2) for row in range(rows)],
        "item_id": [f"i{row}" for row in range(rows)],
        "item_text": ["Heat"] * rows,
        "label": np.zeros(rows, np.int8),
        "split": ["train"] * rows,
        **dict.fromkeys(("position", "request", "known"), np.arange(rows, dtype=np.int32) % 2),
        **columns,
    }
    publish_events(home, pa.table(table))


def config(template: str | None, **tokens: Any) -> Config:
    given = {"user_template": template, "vocab_size": 300, **tokens}
    return from_plain(Config, {"validation": {"required": False}, "tokens": given})


def texts(home: Paths) -> list[str]:
    """The text of each row's user, from its tokens."""
    store, tokenizer = TokenStore.open(home.tokens), load_tokenizer(home.tokens)
    spans = zip(store.offsets[store.user_text], store.offsets[store.user_text + 1], strict=True)
    return [tokenizer.decode(store.tokens[a:b]).strip() for a, b in spans]


@pytest.mark.parametrize("block", [1, 2, 1 << 18])
def test_each_user_has_the_text_of_the_columns(home: Paths, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(log_columns, "ROWS", block)
    write(home, age=["25", "", "25", ""], job=["writer", "clerk", "writer", ""])
    report = tokenize(config("Of {age}, a {job}"), home)
    assert texts(home) == ["Of 25, a writer"] * 2 + ["Of , a clerk"] * 2 + ["Of 25, a writer"] * 2 + [""] * 2
    store = TokenStore.open(home.tokens)
    assert store.opening().tolist()[-2:] == [0, 0]
    counts = (report.user_texts, report.user_texts_cut, report.users_without_text, report.longest_user_text)
    assert counts == (3, 0, 1, store.longest_opening)
    assert report.texts == 1, "those of items"


def test_a_long_text_is_cut_at_its_end_and_counted(home: Paths) -> None:
    write(home, job=["clerk", " ".join(f"word{i}" for i in range(30)), "clerk"])
    report = tokenize(config("{job}", max_text_tokens=5), home)
    assert (report.user_texts_cut, report.longest_user_text, report.texts_cut) == (1, 5, 0)


def test_the_text_of_a_user_follows_the_prefix(home: Paths) -> None:
    write(home, job=["clerk", "", "writer"])
    tokenize(config("{job}", prefix="Who clicks?"), home)
    store = TokenStore.open(home.tokens)
    assert store.opening().min() == len(store.prefix) == store.opening(np.array([2]))[0] > 0
    assert texts(home)[::2] == ["clerk", "", "writer"]


def test_without_a_template_everything_is_as_it_was(home: Paths) -> None:
    """Columns, offsets, report and recorded parameters; and one that names columns leaves the items as they were."""
    write(home, job=["clerk", "", "writer"])
    tokenize(config(None), home)
    manifest = artifacts.read(home.tokens, "tokenize")
    assert "user_template" not in manifest.config["tokens"]
    assert not [name for name in manifest.report if "user" in name]
    plain = TokenStore.open(home.tokens)
    assert len(plain.user_text) == 0
    assert plain.opening().tolist() == [0] * 6
    tokenize(config("{job}"), home)
    store, made = TokenStore.open(home.tokens), artifacts.read(home.tokens, "tokenize", TokenizeReport)
    assert made.config["tokens"]["user_template"] == "{job}"
    assert made.report.user_texts == 3
    assert store.text.tolist() == plain.text.tolist()
    assert len(store.offsets) == len(plain.offsets) + 3
    assert pq.read_table(home.tokens / "items.parquet").column_names == ["item_id", "item_text"]


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (["x", "x", "y", "y", "y", "z"], r"\{job\}, which changes inside user 'c', from 'y' to 'z': a column of the"),
        (["x", "x", "y", "y", "", "z"], r"\{job\}, which changes inside user 'c', from '' to 'z'"),
        (["x", "", "y", "y", "z", "z"], r"\{job\}, which changes inside user 'a', from 'x' to ''"),
        ([""] * 6, r".*: no user has a value for it$"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 18])
def test_a_column_that_is_not_of_the_user_is_one_sentence(
    home: Paths, monkeypatch: pytest.MonkeyPatch, job: list[str], sentence: str, block: int
) -> None:
    monkeypatch.setattr(log_columns, "ROWS", block)
    write_rows(home, job=job, age=["1"] * 6 if any(job) else [""] * 6)
    with pytest.raises(InputError, match=r"^params key `tokens\.user_template` (names|is) " + sentence) as refusal:
        tokenize(config("{age} {job}"), home)
    assert "\n" not in str(refusal.value)
    assert not home.tokens.exists()


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{job", r"is '\{job': "),
        ("{}", r"must be text whose braces hold names"),
        ("a fixed text", r"must be text whose braces hold columns of a user, not 'a fixed text'"),
        ("{gap} {job}", r"must be text whose braces hold columns of a user"),
        ("{item_text}", r"must be text whose braces hold columns of a user"),
        ("{job:d}", r"is '\{job:d\}', which cannot be filled in"),
        ("{age}", r"names \{age\}, which .* does not have: run `dti ingest` again"),
    ],
)
def test_a_template_that_is_none_is_one_sentence(home: Paths, template: str, sentence: str) -> None:
    write(home, job=["clerk", "clerk", "clerk"])
    with pytest.raises(InputError, match=r"^params key `tokens\.user_template` " + sentence):
        tokenize(config(template), home)
