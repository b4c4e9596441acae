"""Tokenizers as pretrained models have them: marks before words, a bos token, gaps, no padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dti_pipeline.errors import InputError
from dti_pipeline.packing.store import TokenStore
from dti_pipeline.packing.tokenize import tokenize
from dti_pipeline.paths import Paths
from tests.code.test_packing_tokenize import config, write_events

WORDS = ["<unk>", "<s>", "</s>", "▁", "▁yes", "▁no", "▁heat", "▁ran", *"abcdefghijklmnopqrstuvwxyz"]


def write_marked(folder: Path, *lacks: str) -> str:
    """A tokenizer in SentencePiece's manner: a mark before each word and before the text, a bos token, no padding."""
    unigram = models.Unigram([(word, -2.0 - i / 99) for i, word in enumerate(WORDS) if word not in lacks], unk_id=0)
    tokenizer = Tokenizer(unigram)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    bos = [("<s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=bos)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    return str(folder)


def test_label_words_are_the_tokens_that_follow_a_text(home: Paths, tmp_path: Path) -> None:
    """Given alone, such a tokenizer would put a second mark before a word that begins with a space."""
    path = write_marked(tmp_path)
    write_events(home, ["heat"] * 5)
    report = tokenize(config(tokens={"tokenizer": path}), home)
    words = {role: WORDS.index(word) for role, word in (("yes", "▁yes"), ("no", "▁no"), ("pad", "</s>"))}
    assert report.special_tokens == {**words, "sum": len(WORDS)}
    assert report.new_label_words == ()


def test_a_label_word_of_several_tokens_is_told(home: Paths, tmp_path: Path) -> None:
    path = write_marked(tmp_path, "▁no")
    write_events(home, ["heat"] * 5)
    report = tokenize(config(tokens={"tokenizer": path}), home)
    assert report.new_label_words == ("[NO]",)
    assert report.special_tokens["no"] == report.vocabulary - 1


def test_a_bos_token_opens_a_prompt_where_the_prefix_says_so_and_stands_nowhere_else(
    home: Paths, tmp_path: Path
) -> None:
    path = write_marked(tmp_path)
    write_events(home, ["heat", "ran", "heat", "ran", "heat"])
    assert tokenize(config(tokens={"tokenizer": path}), home).prefix_tokens == ()
    bos, heat = WORDS.index("<s>"), WORDS.index("▁heat")
    report = tokenize(config(tokens={"tokenizer": path, "prefix": "<s>heat"}), home)
    assert report.prefix_tokens[0] == bos
    assert set(report.prefix_tokens[1:]) <= {heat, WORDS.index("▁"), *map(WORDS.index, "heat")}
    store = TokenStore.open(home.tokens)
    assert bos not in np.unique(store.tokens)


@pytest.mark.parametrize(("far", "refused"), [(5, True), (9, False)])
def test_ids_with_gaps_are_counted_to_their_end_and_never_given_twice(
    home: Paths, tmp_path: Path, far: int, refused: bool
) -> None:
    vocabulary = {"[UNK]": 0, "heat": 1, "yes": 2, "no": 3, "far": far}  # five tokens: the next one would be 5
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path / "gaps")
    write_events(home, ["heat"] * 5)
    settings = config(tokens={"tokenizer": str(tmp_path / "gaps")})
    if refused:
        with pytest.raises(InputError, match="has gaps, so that a new token would be 'far' too"):
            tokenize(settings, home)
    else:
        assert tokenize(settings, home).vocabulary == far + 1
