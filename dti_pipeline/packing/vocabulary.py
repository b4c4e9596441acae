"""The tokenizer of a log: trained on its texts or taken from a model, with the tokens that prompts need besides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dti_pipeline import pretrained
from dti_pipeline.config import TokensConfig
from dti_pipeline.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Added to every vocabulary. [YES] and [NO] only where the tokenizer has no single token for the words.
SUM = "[SUM]"
ROLES = {"yes": (" yes", "[YES]"), "no": (" no", "[NO]")}


def tokenizer_of(config: TokensConfig, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer that ``tokens.tokenizer`` names, or one trained on ``texts``. InputError where there is none."""
    if config.tokenizer is None:
        return _train(config, texts)
    from transformers import AutoTokenizer

    source = pretrained.source(config.tokenizer, "tokens.tokenizer")
    try:
        return AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"params key `tokens.tokenizer`: no tokenizer at {config.tokenizer!r} ({reason})") from error


def _train(config: TokensConfig, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """Byte-level BPE on the item texts: nothing is out of vocabulary, frequent words are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=["[PAD]", SUM, "[YES]", "[NO]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, config.prefix] if config.prefix else texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", extra_special_tokens=[SUM, "[YES]", "[NO]"]
    )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids of [PAD], [SUM], yes and no; what the vocabulary lacks is added to it."""
    tokenizer.add_tokens([SUM], special_tokens=True)
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere: any token can stand for it, and a new one would grow the embeddings.
        tokenizer.pad_token = tokenizer.eos_token or SUM
    ids = {"pad": int(tokenizer.pad_token_id), "sum": int(tokenizer.convert_tokens_to_ids(SUM))}
    for role, (word, token) in ROLES.items():
        one = None if token in tokenizer.get_vocab() else behind_a_text(tokenizer, word)
        if one is None:
            tokenizer.add_tokens([token], special_tokens=True)
            one = int(tokenizer.convert_tokens_to_ids(token))
        ids[role] = one
    new = tokenizer.get_added_vocab().keys() & {SUM, *(token for _, token in ROLES.values())}
    numbers = {tokenizer.convert_tokens_to_ids(token) for token in new}
    for token, number in tokenizer.get_vocab().items():
        if number in numbers and token not in new:
            raise InputError(
                f"params key `tokens.tokenizer`: its vocabulary has gaps, so that a new token would be {token!r} too"
            )
    return ids


def behind_a_text(tokenizer: PreTrainedTokenizerBase, word: str) -> int | None:
    """The one token that ``word``, which begins with a space, is behind a text; None where it is several, or unknown.
    Alone it may be another: some tokenizers put a mark of their own before what they are given."""
    text, both = (tokenizer.encode(x, add_special_tokens=False) for x in ("a", "a" + word))
    one = both[-1] if both[:-1] == text else None
    return None if one == tokenizer.unk_token_id else one


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], max_text_tokens: int, of: str = "item"
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokens end to end, (t + 1,) offsets, and how many texts were longer than ``max_text_tokens`` and were cut.
    Raises InputError for a text of which the tokenizer makes nothing, unless it is a user's and empty."""
    # A title may read "[SUM]": it is text all the same.
    options = {"add_special_tokens": False, "return_attention_mask": False, "split_special_tokens": True}
    encoded = tokenizer(texts, **options)["input_ids"]
    for text, ids in zip(texts, encoded, strict=True):
        if not ids and (text or of == "item"):
            raise InputError(f"the tokenizer makes no token of the {of} text {text!r}")
    kept = [ids[:max_text_tokens] for ids in encoded]
    cut = sum(len(ids) > max_text_tokens for ids in encoded)
    offsets = np.cumsum([0, *map(len, kept)], dtype=np.int64)
    return np.concatenate(kept).astype(np.int32), offsets, cut


def load_trained(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a store that was trained on its texts; unlike :func:`load_tokenizer`, it imports no torch."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer", trust_remote_code=False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer a store or a model was made with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
