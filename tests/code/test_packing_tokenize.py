"""Item texts to tokens: what becomes of texts that are empty, unreadable, repeated, or longer than a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dti_pipeline.config import Config, from_plain
from dti_pipeline.errors import CheckFailed, InputError
from dti_pipeline.packing.pack import pack
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.packing.tokenize import tokenize
from dti_pipeline.packing.vocabulary import load_tokenizer
from dti_pipeline.paths import Paths
from tests.code.token_stores import publish_events


def config(**sections: Any) -> Config:
    return from_plain(Config, {"validation": {"required": False}, "split": {"min_history": 1}, **sections})


def write_events(paths: Paths, texts: list[str], **columns: list[int]) -> None:
    """One user's history of these items, in order; the last two rows are held out. ``columns``: request and known,
    where a row does not know all before it."""
    count = len(texts)
    table = {
        "item_id": pa.array([f"i{i}" for i in range(count)]),
        "item_text": texts,
        "label": np.arange(count, dtype=np.int8) % 2,
        "split": ["train"] * (count - 2) + ["validation", "test"],
        **dict.fromkeys(("position", "request", "known"), np.arange(count, dtype=np.int32)),
        **{name: np.array(values, np.int32) for name, values in columns.items()},
    }
    publish_events(paths, pa.table(table))


def read_texts(paths: Paths) -> list[str]:
    """Each row's text, from its tokens."""
    store, tokenizer = TokenStore.open(paths.tokens), load_tokenizer(paths.tokens)
    spans = zip(store.offsets[store.text], store.offsets[store.text + 1], strict=True)
    return [tokenizer.decode(store.tokens[a:b]).strip() for a, b in spans]


def test_an_item_without_a_text_is_called_by_its_id(home: Paths) -> None:
    write_events(home, ["Heat", "", "   ", "Heat", "Ran"])
    report = tokenize(config(), home)
    assert read_texts(home) == ["Heat", "item i1", "item i2", "Heat", "Ran"]
    assert report.texts == 4, "equal texts are stored once"
    assert TokenStore.open(home.tokens).lengths().min() >= 2


def test_a_long_text_is_cut_at_its_end_and_counted(home: Paths) -> None:
    long = "The Assassination of Jesse James by the Coward Robert Ford and what came of it afterwards"
    write_events(home, ["Heat", long, "Ran", "Heat", "Ran"])
    report = tokenize(config(tokens={"max_text_tokens": 6, "vocab_size": 300}), home)
    assert report.texts_cut == 1
    assert TokenStore.open(home.tokens).lengths().max() == 7
    assert long.startswith(read_texts(home)[1])


def test_a_text_longer_than_a_row_is_refused_with_the_length_that_would_do(home: Paths) -> None:
    write_events(home, ["Heat", " ".join(f"word{i}" for i in range(200)), "Ran", "Heat", "Ran"])
    settings = config(tokens={"max_text_tokens": 4096, "vocab_size": 300}, packing={"row_length": 128, "context": 2})
    tokenize(settings, home)
    with pytest.raises(
        InputError, match=r"`packing\.row_length` is 128.* raise it to \d+, or lower packing\.context or tokens"
    ):
        pack(settings, home, "dti")


def test_a_text_of_which_the_tokenizer_makes_nothing_is_named(home: Paths, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "heat": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("-", ""), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path / "words")
    write_events(home, ["Heat", "---", "Heat", "Heat", "Heat"])
    with pytest.raises(InputError, match="makes no token of the item text '---'"):
        tokenize(config(tokens={"tokenizer": str(tmp_path / "words")}), home)
    assert not home.tokens.exists()


def test_words_that_are_single_tokens_are_the_labels_and_the_rest_is_added(home: Paths, tmp_path: Path) -> None:
    vocabulary = {"[UNK]": 0, "heat": 1, "yes": 2, "no": 3, "[PAD]": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    words.save_pretrained(tmp_path / "words")
    write_events(home, ["heat"] * 5)
    report = tokenize(config(tokens={"tokenizer": str(tmp_path / "words")}), home)
    assert report.special_tokens == {"pad": 4, "sum": 5, "yes": 2, "no": 3}
    assert report.vocabulary == 6


def test_an_item_text_cannot_smuggle_in_a_special_token(home: Paths) -> None:
    """A title that reads [SUM] would be seen by others as a target's own token."""
    write_events(home, ["Heat", "[SUM]", "[YES] or [NO]", "[PAD]", "Heat", "Ran"])
    tokenize(config(), home)
    store = TokenStore.open(home.tokens)
    assert not set(store.tokens.tolist()) & set(store.special.values())


@pytest.mark.parametrize("context", ["shown", "known"])
def test_the_store_knows_requests_and_what_stands_in_a_context(home: Paths, context: str) -> None:
    request, known = [0, 0, 2, 3, 3], [0, 0, 0, 2, 2]
    write_events(home, ["Heat"] * 5, request=request, known=known)
    settings = config(split={"context": context, "min_history": 2})
    assert tokenize(settings, home).knowledge.context == context
    store = TokenStore.open(home.tokens)
    assert (store.request.tolist(), store.known.tolist()) == (request, known)
    assert store.seen.tolist() == (request if context == "shown" else known)
    assert store.request.dtype == store.known.dtype == store.seen.dtype == np.int32
    packed = pack(settings, home, "dti")
    assert packed.targets == 1, "two rows stand before the third's request; before the second's, none"


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        ({"tokenizer": "/no/such/tokenizer"}, r"`tokens\.tokenizer`: no tokenizer at '/no/such/tokenizer'"),
        (
            {"template": "{title}"},
            r"`tokens\.template` names \{title\}, which .* does not have: run `dti ingest` again",
        ),
        ({"template": "{item_text:d}"}, r"`tokens\.template` is '\{item_text:d\}', which cannot be filled in"),
        ({"template": " "}, r"`tokens\.template` is ' ': it leaves items without any text"),
    ],
)
def test_wrong_parameters_are_one_sentence(home: Paths, tokens: dict[str, Any], sentence: str) -> None:
    write_events(home, ["Heat"] * 5)
    with pytest.raises(InputError, match=sentence) as refusal:
        tokenize(config(tokens=tokens), home)
    assert len(str(refusal.value).splitlines()) == 1


def test_events_that_were_never_checked_are_refused(home: Paths) -> None:
    write_events(home, ["Heat"] * 5)
    with pytest.raises((InputError, CheckFailed), match="run `dti validate` first"):
        tokenize(from_plain(Config, {}), home)
